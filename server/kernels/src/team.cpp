#include "team.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <utility>

#include "rounding.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gpt2d {
namespace {

constexpr int SPINS = 200;                               // some microseconds; then a waiting thread offers its core to others each time
constexpr auto LINGER = std::chrono::microseconds(300);  // after a job: the next step of a generation comes within it

thread_local int me = 0;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// In nanoseconds, on the wall.
int64_t wall() { return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The same of the time for which this thread had a core.
int64_t on_core() {
#if defined(_WIN32)
    return wall();  // a thread's own clock goes in ticks of 16 ms there, so nothing is told of cores that others had
#else
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
#endif
}

}  // namespace

Team::Team(int threads) : size_(threads), used_(threads), shares_(size_t(threads)) {
    try {
        helpers_.reserve(size_t(threads));
        for (int i = 1; i < threads; i++) helpers_.emplace_back([this, i] { help(i); });
    } catch (...) {
        end();  // those that have begun
        throw;
    }
}

Team::~Team() { end(); }

int Team::place() { return me; }

void Team::end() {
    ending_ = true;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    for (auto &helper : helpers_) helper.join();
}

void Team::use(int threads) {
    if (threads == used_) return;
    uint64_t last = call_;
    // Who is set aside may still be leaving the last job, and the next one, which does not wait for it, changes what it sees.
    for (int i = threads; i < std::min(used_, int(last & 0xffff)); i++)
        while (shares_[size_t(i)].left.load(std::memory_order_acquire) != last >> 16) std::this_thread::yield();
    std::lock_guard<std::mutex> lock(mutex_);
    for (int i = used_; i < threads; i++)
        for (auto &taken : shares_[size_t(i)].taken) taken = 0;
    used_ = threads;
    wake_.notify_all();
}

void Team::run(const std::function<void()> &job) {
    job_ = &job;
    for (auto &share : shares_) share.off = 0;
    began_ = wall();
    call_ = (((call_ >> 16) + 1) << 16) + uint64_t(used_);
    if (sleepers_) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take_part();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::take_part() {
    int64_t ran_before = on_core();
    try {
        (*job_)();
    } catch (const Stopped &) {
        return;  // the meeting at which it was thrown is everybody's last
    } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
    }
    // Two readings of each clock in a job cost a microsecond; what the caller then waits for the others is little.
    int64_t took = wall() - began_, ran = on_core() - ran_before;
    shares_[size_t(me)].off = 1e-9 * double(std::max(int64_t(0), took - ran));
    meet([] {});
}

// True for the thread that comes last, which must `open` the next phase.
bool Team::arrive(unsigned phase) {
    // What was taken in the phase before this one: all have left it, and none begins the next, which counts there, before this meeting.
    shares_[size_t(me)].taken[(phase + 1) & 1].store(0, std::memory_order_relaxed);
    int others = used_ - 1;  // read before the last meeting ends, after which it may change
    return arrived_.fetch_add(1, std::memory_order_acq_rel) == others;
}

void Team::open(unsigned phase) {
    arrived_.store(0, std::memory_order_relaxed);
    stopped_ = error_ != nullptr;
    phase_.store(phase + 1, std::memory_order_release);
}

void Team::wait(unsigned phase) {
    for (int i = 0; phase_.load(std::memory_order_acquire) == phase; i++) i < SPINS ? pause() : std::this_thread::yield();
}

bool Team::claim(int total, int part, int *first, int *end) {
    unsigned phase = phase_.load(std::memory_order_relaxed) & 1;
    for (int i = 0; i < used_; i++) {
        int owner = (me + i) % used_;
        auto &taken = shares_[size_t(owner)].taken[phase];
        int begin = int(int64_t(total) * owner / used_), size = int(int64_t(total) * (owner + 1) / used_) - begin;
        if (taken.load(std::memory_order_relaxed) >= size) continue;
        int at = taken.fetch_add(part, std::memory_order_relaxed);
        if (at >= size) continue;
        *first = begin + at, *end = begin + std::min(size, at + part);
        return true;
    }
    return false;
}

void Team::help(int thread) {
    DefaultRounding rounding;
    me = thread;
    for (uint64_t done = 0;;) {
        auto until = std::chrono::steady_clock::now() + LINGER;
        // A job that calls this thread waits for it: the next call comes after it.
        auto called = [&] {
            uint64_t call = call_;
            return ending_ || (call >> 16 != done && thread < int(call & 0xffff));
        };
        for (int i = 1; !called(); i++) {
            i % SPINS ? pause() : std::this_thread::yield();
            if (i % 64 == 0 && std::chrono::steady_clock::now() > until) sleep_until(called, thread);
        }
        if (ending_) return;
        done = call_ >> 16;
        take_part();
        shares_[size_t(thread)].left.store(done, std::memory_order_release);
    }
}

template <class Condition>
void Team::sleep_until(Condition condition, int thread) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (bool over = false; !over;) {
        bool counts = thread < used_;  // `use` wakes whoever it concerns
        sleepers_ += counts;
        over = condition();
        if (!over) wake_.wait(lock);
        sleepers_ -= counts;
    }
}

}  // namespace gpt2d
