// Large memory, zeroed, on huge pages where the system gives them: fewer page-table walks when weights are read from end to end.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gpt2d {

class Memory {
   public:
    explicit Memory(size_t bytes) : bytes_((bytes + HUGE - 1) / HUGE * HUGE) {
        data_ = static_cast<unsigned char *>(std::aligned_alloc(HUGE, bytes_));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
        std::memset(data_, 0, bytes_);
    }
    ~Memory() { std::free(data_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    unsigned char *data() const { return data_; }

   private:
    static constexpr size_t HUGE = size_t(2) << 20;
    size_t bytes_;
    unsigned char *data_;
};

}  // namespace gpt2d
