/* machine_probe: what this machine allows a step of the native engine, measured by as many threads as the step has.
 * scripts/bench/machine.py compiles it for this processor and loads it; scripts/bench/rows.py judges steps by it.
 *
 *   cc -O3 -march=native -pthread -shared -fPIC machine_probe.c -o machine_probe.so
 *
 * Threads start before a measurement and meet at a spinning barrier before and after each pass, so that no start of a
 * thread is in a time. A figure is the best of several passes: what else the machine does can only make it worse.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() (void)0
#endif

enum { MOST_THREADS = 256, MEETINGS = 2000 };

typedef struct {
    int threads, passes;
    atomic_int arrived, phase;
    double (*work)(void *what, int thread, int threads); /* returns how much it has done */
    void *what;
    double done[MOST_THREADS];
    double best; /* done by all of them, in a second */
} Measurement;

typedef struct {
    Measurement *all;
    int thread;
} Place;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void meet(Measurement *m) {
    int phase = atomic_load_explicit(&m->phase, memory_order_relaxed);
    if (atomic_fetch_add(&m->arrived, 1) == m->threads - 1) {
        atomic_store(&m->arrived, 0);
        atomic_store(&m->phase, phase + 1);
    } else {
        while (atomic_load_explicit(&m->phase, memory_order_acquire) == phase) PAUSE();
    }
}

static void *take_passes(void *argument) {
    Place *place = argument;
    Measurement *m = place->all;
    for (int pass = 0; pass < m->passes; pass++) {
        meet(m);
        double began = now();
        m->done[place->thread] = m->work(m->what, place->thread, m->threads);
        meet(m);
        double seconds = now() - began, total = 0;
        if (place->thread) continue;
        for (int i = 0; i < m->threads; i++) total += m->done[i];
        if (total / seconds > m->best) m->best = total / seconds;
    }
    return NULL;
}

/* Units of work in a second, by all threads together; negative where the threads cannot be started. */
static double measure(double (*work)(void *, int, int), void *what, int threads, int passes) {
    Measurement m = {.threads = threads, .passes = passes, .work = work, .what = what};
    Place places[MOST_THREADS];
    pthread_t ids[MOST_THREADS];
    if (threads < 1 || threads > MOST_THREADS) return -1;
    for (int i = 0; i < threads; i++) places[i] = (Place){&m, i};
    for (int i = 1; i < threads; i++)
        if (pthread_create(ids + i, NULL, take_passes, places + i)) return -1; /* those that wait have lost: the caller ends */
    take_passes(places);
    for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
    return m.best;
}

/* ---- memory: each thread reads its part from end to end, eight registers of 64 bytes in a turn */
typedef long long Wide __attribute__((vector_size(64), aligned(1), may_alias));
typedef struct {
    const char *at;
    size_t bytes;
} Area;
static volatile long long sink;

static double read_part(void *what, int thread, int threads) {
    const Area *area = what;
    size_t part = area->bytes / (size_t)threads / 512 * 512;
    const char *from = area->at + part * (size_t)thread;
    Wide s[8] = {0};
    for (size_t i = 0; i < part; i += 512)
        for (int j = 0; j < 8; j++) {
            __builtin_prefetch(from + i + 4096 + j * 64);
            s[j] ^= *(const Wide *)(from + i + j * 64);
        }
    for (int j = 1; j < 8; j++) s[0] ^= s[j];
    sink = s[0][0];
    return (double)part;
}

double probe_read(const void *at, size_t bytes, int threads, int passes) { /* bytes a second */
    Area area = {at, bytes};
    return measure(read_part, &area, threads, passes);
}

/* ---- a meeting of all threads, as the engine's team has a hundred in a step */
static double meetings(void *what, int thread, int threads) {
    (void)threads;
    for (int i = 0; i < MEETINGS; i++) meet(what);
    return thread ? 0 : MEETINGS;
}

double probe_meetings(int threads, int passes) { /* meetings a second */
    Measurement m = {.threads = threads};
    return measure(meetings, &m, threads, passes);
}

/* ---- products: sums that do not wait for each other, as many as hide how long one takes */
enum { TURNS = 200000 };
#define DO_8(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define DO_12(DO) DO_8(DO) DO(8) DO(9) DO(10) DO(11)
/* A function for `measure` that adds products to `sums` registers in each turn. */
#define PRODUCTS(name, Register, sums, add, macs)                  \
    static double name(void *what, int thread, int threads) {      \
        Register w = {0}, a = {0}, ones = {0}, t = {0}, s[sums] = {0}; \
        (void)what, (void)thread, (void)threads, (void)ones, (void)t; \
        for (int turn = 0; turn < TURNS; turn++) { DO_##sums(add) } \
        return (double)TURNS * sums * macs;                        \
    }

#ifdef __AVX512VNNI__
#define DOT_512(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(s[i]) : "v"(w), "v"(a));
PRODUCTS(dot_512, __m512i, 12, DOT_512, 64)
#define FMA_512(i) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(s[i]) : "v"(w), "v"(a));
PRODUCTS(fma_512, __m512, 12, FMA_512, 16)
#endif
#if defined(__AVX2__) && defined(__FMA__)
/* Products of two bytes, added in pairs to 16 bits, these to 32, and to the sum. Where weights are signed, the activations
 * take their signs first. */
#define DOT_256(i) \
    __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0" \
                     : "+x"(s[i]), "=&x"(t) : "x"(w), "x"(a), "x"(ones));
#define SIGNED_DOT_256(i) \
    __asm__ volatile("vpsignb %2, %3, %1\n\tvpmaddubsw %1, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0" \
                     : "+x"(s[i]), "=&x"(t) : "x"(w), "x"(a), "x"(ones));
PRODUCTS(dot_256, __m256i, 8, DOT_256, 32)
PRODUCTS(signed_dot_256, __m256i, 8, SIGNED_DOT_256, 32)
#define FMA_256(i) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(s[i]) : "x"(w), "x"(a));
PRODUCTS(fma_256, __m256, 12, FMA_256, 8)
#endif

#if defined(__AVXVNNI__) && defined(__FMA__)
#define VNNI_256(i) __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(s[i]) : "x"(w), "x"(a));
PRODUCTS(vnni_256, __m256i, 12, VNNI_256, 32)
#endif

/* Multiplications (each with its addition) a second, as the kernels of an instruction set do them for weights of `bits`
 * bits; negative where this processor or this file has none. */
double probe_products(const char *instruction_set, int bits, int threads, int passes) {
#ifdef __AVX512VNNI__
    if (!strcmp(instruction_set, "avx512")) return measure(bits == 32 ? fma_512 : dot_512, NULL, threads, passes);
#endif
#if defined(__AVXVNNI__) && defined(__FMA__)
    if (!strcmp(instruction_set, "avxvnni")) return measure(bits == 32 ? fma_256 : vnni_256, NULL, threads, passes);
#endif
#if defined(__AVX2__) && defined(__FMA__)
    if (!strcmp(instruction_set, "avx2"))
        return measure(bits == 32 ? fma_256 : bits == 8 ? signed_dot_256 : dot_256, NULL, threads, passes);
#endif
    (void)instruction_set, (void)bits, (void)threads, (void)passes;
    return -1;
}
