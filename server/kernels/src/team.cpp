#include "team.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gpt2d {
namespace {

constexpr int SPINS = 200;                                // some microseconds; then a waiting thread offers its core to others each time
constexpr auto LINGER = std::chrono::microseconds(300);  // after a job: the next step of a generation comes within it

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

Team::Team(int threads) : size_(threads) {
    for (int i = 1; i < threads; i++) helpers_.emplace_back([this] { help(); });
}

Team::~Team() {
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
    job();
    barrier();
}

void Team::barrier() {
    unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        taken_[phase & 1].store(0, std::memory_order_relaxed);  // nobody looks at it before the next barrier
        phase_.store(phase + 1, std::memory_order_release);
    } else {
        spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
}

bool Team::claim(int total, int part, int *first, int *end) {
    auto &taken = taken_[phase_.load(std::memory_order_relaxed) & 1];
    if (size_ == 1 && taken == 0) part = total;
    *first = taken.fetch_add(part, std::memory_order_relaxed);
    *end = std::min(total, *first + part);
    return *first < total;
}

void Team::help() {
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
        (*job_)();
        barrier();
    }
}

}  // namespace gpt2d
