// A job that throws: on a helper's thread, on the caller's, on all; before, between and after meetings. Nobody waits for ever,
// the caller gets the exception, and the next job runs, with as many threads as are to do it.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>

#include "team.h"

#define CHECK(condition) \
    if (!(condition)) std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), std::exit(1)

namespace {

enum Who { caller, helpers, everybody };

void fails(gpt2d::Team &team, Who who, int after) {
    auto here = std::this_thread::get_id();
    bool caught = false;
    try {
        team.run([&] {
            bool is_caller = std::this_thread::get_id() == here;
            for (int meeting = 0; meeting < 3; meeting++) {
                if (meeting == after && (who == everybody || is_caller == (who == caller))) throw std::bad_alloc{};
                team.barrier();
            }
        });
    } catch (const std::bad_alloc &) {
        caught = true;
    }
    CHECK(caught);
}

void works(gpt2d::Team &team) {
    std::atomic<int> done{0}, shared{0};
    team.run([&] {
        team.barrier();
        team.share(100, 7, [&](int first, int end) { shared += end - first; });
        done++;
    });
    CHECK(done == team.used() && shared == 100);
}

// Threads that are set aside and called again, with and without a job between that; off(): of those alone that took part.
void changes(gpt2d::Team &team) {
    for (int round = 0; round < 50; round++)
        for (int used : {1, team.size(), team.size() - 1, 1}) {
            team.use(used);
            if (round % 3) works(team);
            for (int i = used; i < team.size(); i++) CHECK(round % 3 == 0 || team.off(i) == 0);
        }
    team.use(team.size());
}

// Who is set aside right after a job that failed has left it before the next begins.
void fails_and_changes(gpt2d::Team &team) {
    for (int used = 1; used < team.size(); used++) {
        fails(team, caller, 1);
        team.use(used);
        works(team);
        team.use(team.size());
    }
}

}  // namespace

int main() {
    for (int threads : {2, 3, 5}) {
        gpt2d::Team team(threads);
        for (int round = 0; round < 50; round++)
            for (Who who : {caller, helpers, everybody})
                for (int after : {0, 1, 2}) {
                    fails(team, who, after);
                    works(team);
                }
        changes(team);
        for (int round = 0; round < 50; round++) fails_and_changes(team);
    }
    std::puts("ok");
    return 0;
}
