// Threads that work through the phases of a step together.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gpt2d {

// `run` lets every thread do the same job. In it they meet at `barrier`, and between two of these they `claim` parts of the
// work. Waiting threads spin, since waking one that sleeps takes longer than most phases; they give their core away when it
// lasts, and sleep when there is nothing to do.
//
// Where the job throws on one thread, that thread goes to the next meeting and waits there for the others, who then leave the
// job, too: nobody waits for ever, `run` throws the first exception on its caller's thread, and the next job can begin.
class Team {
   public:
    // Throws std::system_error where the system gives no more threads, std::bad_alloc.
    explicit Team(int threads);
    ~Team();
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    void run(const std::function<void()> &job);
    // Throws Stopped where the job has failed on another thread; the job must let that pass. The thread that comes last does
    // `then`, which must not throw, before the others go on: what is too little to be shared needs no meeting of its own.
    template <class Then = void (*)()>
    void barrier(Then then = [] {}) {
        if (!meet(then)) throw Stopped{};
    }

    // The next part of 0..total-1 that nobody has taken since the last barrier: first..end-1. False if there is none.
    // A thread goes through its own share from the front, so that it reads the weights in one stream, then helps the others.
    bool claim(int total, int part, int *first, int *end);

    // Work on the parts of 0..total-1 with whoever else has come here, then meet.
    template <class Work, class Then = void (*)()>
    void share(int total, int part, Work work, Then then = [] {}) {
        work_off(total, part, work);
        barrier(then);
    }
    // The same without a meeting, at the end of a job.
    template <class Work>
    void work_off(int total, int part, Work work) {
        for (int first, end; claim(total, part, &first, &end);) work(first, end);
    }

    // Says how many threads do the next jobs, 1 to size(); the others sleep, and nobody waits for them. Between two jobs only.
    void use(int threads);
    int used() const { return used_; }
    // Seconds of the last job in which a thread was not on a core, though it never sleeps in a job: others had it.
    double off(int thread) const { return shares_[size_t(thread)].off; }
    int size() const { return size_; }
    // This thread's place in its team; the caller's is 0.
    static int place();

   private:
    struct Stopped {};

    void end();
    void help(int thread);
    template <class Condition>
    void sleep_until(Condition condition, int thread);
    void take_part();
    bool arrive(unsigned phase);
    void open(unsigned phase);
    void wait(unsigned phase);

    // Waits for all threads. False where the job has failed on one of them: the same for all.
    template <class Then>
    bool meet(Then then) {
        unsigned phase = phase_.load(std::memory_order_relaxed);
        if (arrive(phase)) then(), open(phase);
        else wait(phase);
        return !stopped_;
    }

    const int size_;
    int used_;  // changed under the mutex, between jobs
    std::vector<std::thread> helpers_;
    const std::function<void()> *job_ = nullptr;
    int64_t began_ = 0;  // the job, in nanoseconds
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
    bool stopped_ = false;      // the job had failed at the last meeting; written before phase_ lets the others see it
    std::exception_ptr error_;  // the first; written before a meeting, under the mutex, read after it
    struct alignas(64) Share {
        std::atomic<int> taken[2] = {0, 0};  // in phases of even and odd number
        std::atomic<uint64_t> left{0};  // the number of the last job that its thread has left
        double off = 0;
    };
    std::vector<Share> shares_;
    alignas(64) std::atomic<uint64_t> call_{0};  // the number of the last job, and in the last 16 bits how many threads do it
    std::atomic<int> sleepers_{0};               // of those in use
    std::atomic<bool> ending_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

}  // namespace gpt2d
