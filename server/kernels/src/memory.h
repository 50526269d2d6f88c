// Large memory, on huge pages where the system gives them: fewer page-table walks when it is read from end to end.
// It takes memory only as far as it is used, in steps of such a page.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gpt2d {

class Memory {
   public:
    explicit Memory(size_t bytes) {
        bytes = (bytes + HUGE - 1) / HUGE * HUGE;
        data_ = static_cast<unsigned char *>(std::aligned_alloc(HUGE, bytes));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
    ~Memory() { std::free(data_); }
    // Huge pages are for what fills them: the part of one that stays unused would be taken, too.
    void small_pages(size_t at, size_t bytes) {
#if defined(__linux__)
        madvise(data_ + at, bytes, MADV_NOHUGEPAGE);
#else
        (void)at, (void)bytes;
#endif
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    unsigned char *data() const { return data_; }

    static constexpr size_t HUGE = size_t(2) << 20;

   private:
    unsigned char *data_;
};

}  // namespace gpt2d
