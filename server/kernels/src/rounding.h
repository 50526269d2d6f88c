// How the processor rounds, and whether it keeps numbers below the normal ones: as it does when a program starts.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gpt2d {

// What a library has changed for the thread that calls us, as one that is linked with -ffast-math does, is put aside while
// this lives: results are the same bits in every process.
class DefaultRounding {
   public:
    DefaultRounding() : before_(read()), changed_((before_ & SETTINGS) != DEFAULT) {
        if (changed_) write(DEFAULT);
    }
    ~DefaultRounding() {
        if (changed_) write(before_);
    }
    DefaultRounding(const DefaultRounding &) = delete;
    DefaultRounding &operator=(const DefaultRounding &) = delete;

   private:
#if defined(__x86_64__)
    using Register = uint32_t;
    static constexpr Register DEFAULT = 0x1f80, SETTINGS = ~Register(0x3f);  // the other bits say what has happened
    static Register read() { return _mm_getcsr(); }
    static void write(Register x) { _mm_setcsr(x); }
#elif defined(__aarch64__)
    using Register = uint64_t;
    static constexpr Register DEFAULT = 0, SETTINGS = ~Register(0);
    static Register read() {
        Register x;
        asm volatile("mrs %0, fpcr" : "=r"(x));
        return x;
    }
    static void write(Register x) { asm volatile("msr fpcr, %0" : : "r"(x)); }
#else
    using Register = int;
    static constexpr Register DEFAULT = 0, SETTINGS = 0;
    static Register read() { return 0; }
    static void write(Register) {}
#endif

    const Register before_;
    const bool changed_;
};

}  // namespace gpt2d
