// On x86 by cpuid and xgetbv (Intel SDM volume 1, sections 14.3 and 15.2 to 15.4). Not by __builtin_cpu_supports: what fills it is
// linked by gcc and clang, but not by zig, where it is always 0 (https://github.com/ziglang/zig/issues/18074). On Arm by what
// the system says of the processor. Compiled for every processor of its family: this file runs before anything is known.
#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>

namespace gpt2d {
namespace {

constexpr bool all_of(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

struct Features {
    bool amd = false, avx2 = false, avxvnni = false, avx512 = false;

    Features() {
        uint32_t eax, ebx, ecx, edx;
        amd = __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_AMD_ebx && edx == signature_AMD_edx && ecx == signature_AMD_ecx;
        constexpr uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
        if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !all_of(ecx, fma | osxsave | avx | f16c)) return;
        if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
        // The registers that the operating system saves for each thread: XMM and YMM; opmasks, and the ZMM ones in two parts.
        const uint32_t saved = xcr0(), ymm = 0x06, zmm = 0xe6;
        constexpr uint32_t avx2_bit = 1u << 5, f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, vnni = 1u << 11;
        avx2 = all_of(saved, ymm) && all_of(ebx, avx2_bit);
        avx512 = all_of(saved, zmm) && all_of(ebx, avx2_bit | f | dq | bw | vl) && all_of(ecx, vnni);
#if defined(GPT2D_EVEX)
        avxvnni = avx512;
#else
        // A second part of that answer, where there is one: eax is how many more there are.
        avxvnni = avx2 && eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && all_of(eax, 1u << 4);
#endif
    }

    static uint32_t xcr0() {
        uint32_t low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return low;
    }
};

// Asked once: in a virtual machine each cpuid goes to the hypervisor.
const Features &features() {
    static const Features found;
    return found;
}

}  // namespace

bool made_by_amd() { return features().amd; }
bool has_avx2() { return features().avx2; }
bool has_avxvnni() { return features().avxvnni; }
bool has_avx512() { return features().avx512; }

}  // namespace gpt2d

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace gpt2d {

#if defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }                 // HWCAP_ASIMDDP
bool has_i8mm() { return has_dotprod() && getauxval(AT_HWCAP2) >> 13 & 1; }  // HWCAP2_I8MM
#elif defined(__APPLE__)
namespace {
bool has(const char *feature) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname(feature, &found, &size, nullptr, 0) == 0 && found;
}
}  // namespace
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
bool has_dotprod() { return IsProcessorFeaturePresent(43); }                   // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
bool has_i8mm() { return has_dotprod() && IsProcessorFeaturePresent(66); }  // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

}  // namespace gpt2d
#endif
