// Large memory, on huge pages where the system gives them: fewer page-table walks when it is read from end to end.
// It takes memory only as far as it is used, in steps of such a page.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

namespace gpt2d {

class Memory {
   public:
    explicit Memory(size_t bytes) {
        bytes = (bytes + PAGE - 1) / PAGE * PAGE;
        data_ = static_cast<unsigned char *>(take(bytes));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
    ~Memory() { give_back(data_); }
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

    // Of a huge page. HUGE is a macro of math.h on macOS and Windows.
    static constexpr size_t PAGE = size_t(2) << 20;

   private:
#if defined(_WIN32)  // its C library has no aligned_alloc
    static void *take(size_t bytes) { return _aligned_malloc(bytes, PAGE); }
    static void give_back(void *data) { _aligned_free(data); }
#else
    static void *take(size_t bytes) { return std::aligned_alloc(PAGE, bytes); }
    static void give_back(void *data) { std::free(data); }
#endif

    unsigned char *data_;
};

}  // namespace gpt2d
