// What each instruction set implements. ops_*.cpp compile the *_body.h once for each of them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gpt2d_kernels.h"

namespace gpt2d {

constexpr int BLOCK = 32;  // inputs that share a scale
constexpr int PANEL = 32;  // outputs that lie together: two registers of 16
constexpr int STRIP = 16;  // outputs of a register, half a panel: what is read by itself in the second pass over a head
constexpr float DEVIATIONS = 8;  // so far may an exact logit be from a coarse one

// N outputs by K inputs, both padded to 32. A panel of 32 outputs after the other; in it the blocks of 32 inputs; in these
//   8 bits: [8 groups of 4 inputs][32 outputs][4 inputs] uint8, value + 128            then [32 outputs] fp16 scales
//   4 bits: [4 groups of 8 inputs][32 outputs][4 inputs] low and 4 more in the high nibbles, value + 8, then scales
//   float:  [32 inputs][32 outputs] float
// so that a register holds 16 outputs and a lane is an output: no horizontal sums, and one stream to read.
// Of the token table and the LM head at 8 bits the two strips of a panel lie apart, since they are also read by themselves; in
// one the blocks of 32 inputs: [8 groups of 4 inputs][16 outputs][4 inputs] uint8, then those of scales: [16 outputs] fp16
struct Matrix {
    const uint8_t *data = nullptr;
    const float *bias = nullptr;  // [N], or null
    int outputs = 0, inputs = 0, bits = 0;
    bool apart = false;

    static constexpr size_t block_bytes(int bits) { return bits == 32 ? BLOCK * PANEL * 4 : BLOCK * PANEL * bits / 8 + PANEL * 2; }
    size_t panel_bytes() const { return inputs / BLOCK * block_bytes(bits); }
    int panels() const { return outputs / PANEL; }
    const uint8_t *strip(int i) const { return data + size_t(i) * (panel_bytes() / 2); }
    int zero() const { return bits == 32 ? 0 : 1 << (bits - 1); }
};

// The left side of a product: rows of floats, and for quantised matrices of blocks: value = q * scale, offset = -zero * sum(q).
struct Rows {
    float *floats = nullptr;  // [rows, stride]
    int stride = 0;
    int8_t *q = nullptr;        // [rows, stride]
    float *scales = nullptr;    // [rows, stride / BLOCK]
    int32_t *offsets = nullptr;  // [rows, stride / BLOCK]
};

// What becomes of a product: y = x, y += x, y = gelu_new(x), y = activation(x); with `blocks` what an activation makes is
// quantised for the next product instead. gelu_new, GPT-2's own, has a place in the product.
enum class Finish { store, add, gelu_new, activate };

struct Result {
    float *y;  // [rows, stride]
    int stride;
    Finish finish;
    int activation = GPT2D_GELU_NEW;
    const Rows *blocks = nullptr;
    int zero = 0;  // of what the blocks are multiplied by
};

// The keys and values of one row, layer and head: a block for each 16 positions. Between these blocks lie those of the other
// layers and heads, so that what a row has used lies together. `head` is padded to 16. In a block
//   float, fp16: keys, [head][16], then values, [16][head]
//   8 bits:      keys, [head / 4 groups][16 positions][4 dimensions] uint8, value + 128, and [16] float scales of theirs,
//                then values, [4 groups of positions][head][4 positions] int8, and [16] float scales
struct Cache {
    unsigned char *first;
    size_t stride;  // bytes from a block to the next
    int bits;       // of an element: 32, 16 or 8

    static constexpr int POSITIONS = 16, SCALE = 4;  // of a block; bytes of a scale
    static constexpr size_t half_block(int padded, int bits) { return POSITIONS * (size_t(padded) * bits / 8 + (bits == 8 ? SCALE : 0)); }
    // What a position has outside, when it is copied out: at 8 bits its scale lies behind its bytes.
    static constexpr size_t position(int head, int bits) { return size_t(head) * bits / 8 + (bits == 8 ? SCALE : 0); }
};

struct Attention {
    const float *q, *k, *v;  // of the first token; the next token's are `stride` further
    int stride, head, padded, past, count;
    float factor;  // of the scores
    Cache cache;
    const void *next;  // the first block of what attends after it
    float *out;  // [count, out_stride]
    int out_stride;
    float *scratch;  // attention_scratch() floats
};

constexpr int CHUNK = 64;  // tokens whose weights lie together when one is chosen

// What choosing a token takes, for one thread: memory is taken before anything is changed.
struct Draft {
    std::vector<float> largests, weights, exponents, keys, masses;
    std::vector<double> sums;
    std::vector<int> chunks;
    int count = 0;  // of the chunks in use

    void reserve(int vocabulary) {
        size_t n = (size_t(vocabulary) + CHUNK - 1) / CHUNK;
        if (chunks.size() >= n) return;
        largests.resize(n), sums.resize(n), weights.resize(n * CHUNK), exponents.resize(n * CHUNK);
        keys.resize(n * CHUNK + 16), masses.resize(n * CHUNK + 16);
        chunks.resize(n);  // only now: any of these can throw
    }
};

// What is told of a part of a row's logits, or of all of them.
struct Survey {
    float highest;
    int32_t at;                  // where that is first; -1: nobody asked
    int32_t greater;             // logits that are greater than the token's own
    bool broken;                 // something was not a number
    double sum, weighted, mass;  // of e^x with x = logit - highest, of x e^x, of e^x of the members
};

struct Ops {
    const char *name;
    bool (*usable)();
    // Panels first..end-1 of x m + bias.
    void (*matmul)(const Matrix &m, const Rows &x, int rows, const Result &result, int first, int end);
    // The same bits for strips[first..end-1] of a list of `count`, for one or two rows and a head of 8 bits; where `first`
    // is even and `end` is odd, the strip after it is computed, too.
    void (*matmul_strips)(const Matrix &m, const Rows &x, int rows, float *y, int stride, const int *strips, int first, int end, int count);
    // The largest output of each of the strips first..end-1; false where one of them all is not a number.
    bool (*largest)(const float *y, int first, int end, float *tops);
    // The same of panels first..end-1's strips of coarse outputs y, and what an exact one can be at most: y + DEVIATIONS of a sum
    // of random signs. In a block of 32 inputs the coarse weights of an output leave out at most norms[panel, block] times their
    // scale.
    bool (*bound)(const Matrix &m, const float *y, const uint16_t *norms, const float *x_norms, int first, int end, float *tops, float *most);
    // Layer normalisation of `width` values; `padded` are written.
    void (*norm)(const float *x, const float *gain, const float *bias, int width, int padded, float epsilon, float *y);
    void (*quantise)(const float *x, int n, int zero, int8_t *q, float *scales, int32_t *offsets);
    // x = row `token` of the table + place.
    void (*embed)(const Matrix &table, int token, const float *place, float *x);
    // Write the tokens' keys and values, then let each attend to what is before it and itself.
    void (*attend)(const Attention &a);
    // The largest of each of the chunks first..end-1 of n logits; false where one of these is not a number.
    bool (*find_tops)(const float *logits, int n, int first, int end, float *tops);
    // The token that a row of logits gives, which the choice changes; -1 where they are not numbers. `tops` are the largest of all
    // chunks before that, or null.
    int (*sample)(float *logits, int n, const gpt2d_choice &choice, const float *tops, Draft &draft);
    // Of `n` logits, a multiple of 16, beside a token's own one; members, 1 or 0 for each, may be null. `at` is left to the caller.
    Survey (*survey)(const float *y, int n, float own, const float *members);
    // Of all parts of a row, in their order.
    Survey (*join)(const Survey *parts, int count);
    // The first positions of keys and values, [positions] of Cache::position bytes each, from the cache or into it.
    void (*copy_out)(const Cache &cache, int padded, int head, int positions, void *keys, void *values);
    void (*copy_in)(const Cache &cache, int padded, int head, int positions, const void *keys, const void *values);
};

constexpr int QUERIES = 12;  // tokens of a row that attend together: a multiple of each GROUP

inline size_t attention_scratch(int context, int padded_head) { return QUERIES * (size_t(context) + 16 + padded_head); }

// Of each set two, of which the second fetches the weights of few rows ahead and the first leaves that to the processor.
using BothOps = Ops[2];
extern const BothOps avx512_ops, avxvnni_ops, avx2_ops, i8mm_ops, dotprod_ops, plain_ops;

// The one of that name, or the best that is usable here; null if it is not usable. Of its two the one that suits this processor,
// or with :ahead or :wait behind the name the second or the first.
const Ops *find_ops(const char *name);

}  // namespace gpt2d
