// One GPT-2: where its weights lie, its KV cache, and a step over both.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "gpt2d_kernels.h"
#include "memory.h"
#include "ops.h"
#include "team.h"

namespace gpt2d {

// One layer alone: what it gets, which becomes what it makes of it, and what its matrices are multiplied by.
struct Look {
    int layer;
    float *x;
    int8_t *const *q;
    float *const *scales;
};

struct Step {
    int count;
    const int32_t *ids, *rows, *positions;
    int wanted_count;
    const int32_t *wanted;
    float *logits, *hidden;
    const int32_t *best = nullptr;  // how many of the largest logits are needed of each that is wanted, 0: all; or null
    const Look *look = nullptr;
    const gpt2d_scores *scores = nullptr;
};

// What the two passes over the head keep of a step, for one or two rows.
struct TwoPasses {
    bool used = false;          // in this step
    bool always = false;        // for tests
    bool whole = false;         // the step has fallen back on the whole head
    int failed = 0, resting = 0;  // steps in a row that were not worth it, and those without a try that are left after them
    std::vector<int32_t> offsets;  // of the rows, as the coarse head wants them: [2, blocks]
    std::vector<float> norms;      // of the rows' blocks: [2, blocks]
    std::vector<float> tops, most, exact_tops;  // of each strip: of coarse logits, of what exact ones may be, of these: [2, strips]
    std::vector<float> values;
    std::vector<uint8_t> read;  // [strips]
    std::vector<int> listed;    // strips whose exact logits are computed, first those of the coarse choice
    size_t first = 0, count = 0;  // how many these are, and all
    std::atomic<bool> broken{false};  // something was not a number
};

class Model {
   public:
    // Throws std::bad_alloc, std::system_error.
    Model(const gpt2d_shape &shape, int rows, int threads, const Ops &ops);

    unsigned char *weights() const { return weights_->data(); }
    size_t weight_bytes() const { return weight_bytes_; }
    bool valid(const Step &step) const;
    bool valid(int row, int positions) const { return row >= 0 && row < rows_ && positions >= 0 && positions <= shape_.context; }
    // Throws std::bad_alloc before anything is computed; the model stays as it was.
    void forward(const Step &step);
    void move(int source, int target, int first, int positions);
    Team &team() { return team_; }
    // Without logits, from those of the last step, if the rows were in it: false if not. Throws std::bad_alloc before anything is
    // changed.
    bool choose(int count, const int32_t *rows, float *logits, const gpt2d_choice *const *choices, int32_t *tokens);
    void copy(int row, int positions, void *keys, void *values, bool out);
    int strips_read() const { return two_.used && !two_.whole ? int(two_.count) : 0; }
    void always_two_passes(bool always) { two_.always = always; }

   private:
    struct Norm { const float *gain, *bias; };
    struct Layer {
        Norm before_attention, before_mlp;
        Matrix qkv, out, up, down;
    };
    struct Run { int first, count; };  // tokens of one row
    // What a product is followed by: rows of x (all `count`, or those of `rows`), normalised for what is multiplied next.
    struct Next {
        const Norm &norm;
        const Matrix &matrix;
        int count;
        const int32_t *rows;
    };

    size_t lay_out(uintptr_t base);
    void reserve(int count, int wanted_count);
    void work(const Step &step);
    void normalise(const Norm &norm, const float *x, int row, int to, const Matrix &next);
    void pack(const Rows &rows, int row, int first, int width, const Matrix &next);
    int part_of(const Matrix &m) const;
    template <class Then = void (*)()>
    void multiply(const Matrix &m, const Rows &x, int count, const Result &result, Then then = [] {});
    void multiply(const Matrix &m, const Rows &x, int count, const Result &result, const Next &next);
    void keep(const Step &step, int matrix, const Rows &x);
    // The head, in head.cpp.
    bool in_two_passes(const Step &step);
    bool notes_tops(const Step &step) const;
    void prepare(int row);
    void raise_head(const Rows &x, const Step &step);
    void raise_whole(const Rows &x, const Step &step);
    void raise_best(const Rows &x, const Step &step);
    void hand_out(const Step &step, int first, int end);
    int chunks() const { return (shape_.vocabulary + CHUNK - 1) / CHUNK; }
    int strips() const { return lm_head_.outputs / STRIP; }
    void list_likely(const Step &step);
    void list_possible(const Step &step);
    bool give_up();
    void note(bool worth);
    template <class Wanted>
    void list(Wanted wanted);
    float least_of_best(const Step &step, int row);
    // Scores, in score.cpp.
    int parts() const;
    void reserve_scores(const Step &step);
    void raise_scores(const Rows &x, const Step &step);
    void survey_part(const Rows &x, const gpt2d_scores &scores, int part, int row, int rows);
    void attend(int layer, const Step &step, int unit, float *scratch);
    Cache cache(int layer, int row, int head) const;
    unsigned char *cache_row(int row) const;

    const gpt2d_shape shape_;
    const int rows_, width_, inner_, head_, padded_head_, context_;  // padded to 32, 32, -, 16, 16
    const Ops &ops_;
    size_t weight_bytes_ = 0, cache_stride_ = 0, row_bytes_ = 0;  // from a block of positions to the next, from a row to the next
    size_t row_begin_ = 0;                                        // of a row's memory left free before its first block
    std::unique_ptr<Memory> weights_, cache_;
    const float *places_ = nullptr;
    std::vector<Layer> layers_;
    Norm final_norm_{};
    Matrix table_, lm_head_, coarse_;
    const uint16_t *coarse_norms_ = nullptr;  // of what the coarse head leaves out: [panels, blocks]
    TwoPasses two_;
    Team team_;

    // The activations of a step, for `reserved_` tokens.
    int reserved_ = 0;
    std::vector<float> x_, normed_, qkv_, attended_, inner_values_;
    std::vector<float> logits_;  // of one row or two: [2, padded vocabulary]
    std::vector<float> tail_;    // of the last chunk, with the head's padding: [wanted, CHUNK]
    std::vector<int8_t> q_, inner_q_;
    std::vector<float> scales_, inner_scales_;
    std::vector<int32_t> offsets_, inner_offsets_;
    std::vector<Run> runs_;
    std::vector<int32_t> raised_;  // tokens whose last norm the head is multiplied by: those that are wanted, then those with scores

    // Scores: the logits of a part, for each thread; what is told of each part, [scores, parts]; the largest logit that each
    // thread has seen, [threads, scores]; the members, padded as the head is.
    std::vector<float> tiles_, tops_seen_, members_;
    std::vector<Survey> surveys_;
    const size_t scratch_size_;
    std::vector<float> scratch_;  // [threads, scratch_size_]
    std::vector<Draft> drafts_;   // [threads]

    // What is kept of a step's logits, from which tokens are chosen.
    float *given_ = nullptr;         // where they are
    std::vector<float> tops_;        // the largest of each chunk: [wanted, chunks]
    std::vector<uint8_t> has_tops_;  // [wanted]
    std::atomic<bool> all_numbers_{true};
};

}  // namespace gpt2d
