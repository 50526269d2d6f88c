// Large memory. Weights lie on huge pages where the system gives them: fewer page-table walks when they are read from end to end.
// A cache does not: its rows take memory only as far as they are used, and a huge page is cleared whole at its first use.
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
    enum Kind { weights, cache };

    Memory(size_t bytes, Kind kind) {
        if (kind == cache) {
            data_ = static_cast<unsigned char *>(std::calloc(bytes, 1));
        } else {
            bytes = (bytes + HUGE - 1) / HUGE * HUGE;
            data_ = static_cast<unsigned char *>(std::aligned_alloc(HUGE, bytes));
#if defined(__linux__)
            if (data_) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
        }
        if (!data_) throw std::bad_alloc();
    }
    ~Memory() { std::free(data_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    unsigned char *data() const { return data_; }

   private:
    static constexpr size_t HUGE = size_t(2) << 20;
    unsigned char *data_;
};

}  // namespace gpt2d
