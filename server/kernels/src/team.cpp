#include "team.h"

#include <algorithm>
#include <chrono>
#include <utility>

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

template <class Condition>
void spin_until(Condition condition) {
    for (int i = 0; !condition(); i++) i < SPINS ? pause() : std::this_thread::yield();
}

}  // namespace

Team::Team(int threads) : size_(threads), shares_(size_t(threads)) {
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
    jobs_++;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    for (auto &helper : helpers_) helper.join();
}

void Team::run(const std::function<void()> &job) {
    job_ = &job;
    jobs_++;
    if (sleepers_) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take_part();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::take_part() {
    try {
        (*job_)();
    } catch (const Stopped &) {
        return;  // the meeting at which it was thrown is everybody's last
    } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
    }
    meet([] {});
}

// True for the thread that comes last, which must `open` the next phase.
bool Team::arrive(unsigned phase) {
    // What was taken in the phase before this one: all have left it, and none begins the next, which counts there, before this meeting.
    shares_[size_t(me)].taken[(phase + 1) & 1].store(0, std::memory_order_relaxed);
    return arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1;
}

void Team::open(unsigned phase) {
    arrived_.store(0, std::memory_order_relaxed);
    stopped_ = error_ != nullptr;
    phase_.store(phase + 1, std::memory_order_release);
}

void Team::wait(unsigned phase) {
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

bool Team::claim(int total, int part, int *first, int *end) {
    unsigned phase = phase_.load(std::memory_order_relaxed) & 1;
    for (int i = 0; i < size_; i++) {
        int owner = (me + i) % size_;
        auto &taken = shares_[size_t(owner)].taken[phase];
        int begin = int(int64_t(total) * owner / size_), size = int(int64_t(total) * (owner + 1) / size_) - begin;
        if (taken.load(std::memory_order_relaxed) >= size) continue;
        int at = taken.fetch_add(part, std::memory_order_relaxed);
        if (at >= size) continue;
        *first = begin + at, *end = begin + std::min(size, at + part);
        return true;
    }
    return false;
}

void Team::help(int thread) {
    me = thread;
    for (unsigned seen = 0;; seen++) {
        auto until = std::chrono::steady_clock::now() + LINGER;
        auto called = [&] { return jobs_.load() != seen; };
        for (int i = 1; !called(); i++) {
            i % SPINS ? pause() : std::this_thread::yield();
            if (i % 64 == 0 && std::chrono::steady_clock::now() > until) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_++;
                wake_.wait(lock, called);
                sleepers_--;
            }
        }
        if (ending_) return;
        take_part();
    }
}

}  // namespace gpt2d
