#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace gpt2d {
namespace {

// Rows whose norms one thread does sooner than all would meet once more: half a microsecond each.
constexpr int ALONE = 3;
// More than any system gives a process: sizes are checked before they grow past what a size_t holds.
constexpr size_t MOST_BYTES = size_t(1) << 47;

int padded(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace

Model::Model(const gpt2d_shape &shape, int rows, int threads, const Ops &ops)
    : shape_(shape),
      rows_(rows),
      width_(padded(shape.width, BLOCK)),
      inner_(padded(shape.inner, BLOCK)),
      head_(shape.width / shape.heads),
      padded_head_(padded(head_, 16)),
      context_(padded(shape.context, 16)),
      ops_(ops),
      layers_(size_t(shape.layers)),
      team_(threads),
      scratch_size_((attention_scratch(context_, padded_head_) + 15) / 16 * 16),
      scratch_(scratch_size_ * size_t(threads)),
      drafts_(size_t(threads)) {
    weight_bytes_ = lay_out(0);
    weights_ = std::make_unique<Memory>(weight_bytes_);
    lay_out(reinterpret_cast<uintptr_t>(weights_->data()));
    cache_stride_ = size_t(shape.layers) * shape.heads * 2 * Cache::half_block(padded_head_, shape.cache_bits);
    if (double(cache_stride_) * (context_ / Cache::POSITIONS) * rows > double(MOST_BYTES)) throw std::bad_alloc();
    size_t used = row_bytes_ = size_t(context_ / Cache::POSITIONS) * cache_stride_, part = used % Memory::PAGE;
    if (used > Memory::PAGE && part) row_begin_ = Memory::PAGE - part, row_bytes_ += row_begin_;  // no two share a page
    cache_ = std::make_unique<Memory>(size_t(rows) * row_bytes_);
    // Those pages are small which a row begins in: a short text fills few of them.
    for (int row = 0; row < rows && used > Memory::PAGE; row++) cache_->small_pages(size_t(row) * row_bytes_, Memory::PAGE);
}

// Where each part lies after `base`, in the order of the file; returns where they end.
size_t Model::lay_out(uintptr_t base) {
    size_t at = 0;
    auto floats = [&](size_t n) {
        auto *found = reinterpret_cast<const float *>(base + at);
        at += (n * 4 + 63) / 64 * 64;
        return found;
    };
    auto norm = [&] {
        const float *gain = floats(size_t(width_));
        return Norm{gain, floats(size_t(width_))};
    };
    auto matrix = [&](int outputs, int inputs, int bits, bool biased, bool apart = false) {
        Matrix m;
        m.apart = apart;
        m.outputs = padded(outputs, PANEL), m.inputs = padded(inputs, BLOCK), m.bits = bits;
        m.data = reinterpret_cast<const uint8_t *>(base + at);
        at += m.panels() * m.panel_bytes();
        if (biased) m.bias = floats(size_t(m.outputs));
        return m;
    };
    places_ = floats(size_t(shape_.context) * width_);
    for (Layer &layer : layers_) {
        layer.before_attention = norm();
        layer.qkv = matrix(3 * shape_.width, shape_.width, shape_.bits, true);
        layer.out = matrix(shape_.width, shape_.width, shape_.bits, true);
        layer.before_mlp = norm();
        layer.up = matrix(shape_.inner, shape_.width, shape_.bits, true);
        layer.down = matrix(shape_.width, shape_.inner, shape_.bits, true);
        if (at > MOST_BYTES) throw std::bad_alloc();
    }
    final_norm_ = norm();
    auto head = [&] { return matrix(shape_.vocabulary, shape_.width, shape_.head_bits, false, shape_.head_bits != 32); };
    table_ = head();
    lm_head_ = shape_.tied ? table_ : head();
    if (shape_.head_bits != 32) {
        coarse_ = matrix(shape_.vocabulary, shape_.width, 4, false);
        coarse_norms_ = reinterpret_cast<const uint16_t *>(base + at);
        at += (size_t(coarse_.panels()) * (width_ / BLOCK) * 2 + 63) / 64 * 64;
    }
    return at;
}

bool Model::valid(const Step &s) const {
    if (s.count < 1 || s.wanted_count < 0) return false;
    if (s.look && (shape_.bits == 32 || s.look->layer < 0 || s.look->layer >= shape_.layers)) return false;
    std::vector<bool> seen(size_t(rows_), false);
    for (int i = 0; i < s.count; i++) {
        int row = s.rows[i];
        if (row < 0 || row >= rows_ || s.ids[i] < 0 || s.ids[i] >= shape_.vocabulary) return false;
        if (s.positions[i] < 0 || s.positions[i] >= shape_.context) return false;
        bool follows = i > 0 && s.rows[i - 1] == row;
        if (follows ? s.positions[i] != s.positions[i - 1] + 1 : seen[size_t(row)]) return false;
        seen[size_t(row)] = true;
    }
    if (s.best && !std::all_of(s.best, s.best + s.wanted_count, [](int k) { return k >= 0; })) return false;
    auto known = [](const int32_t *values, int n, int end) { return std::all_of(values, values + n, [&](int x) { return x >= 0 && x < end; }); };
    if (s.scores) {
        if (s.scores->count < 0 || !known(s.scores->places, s.scores->count, s.count)) return false;
        if (!known(s.scores->tokens, s.scores->count, shape_.vocabulary)) return false;
    }
    return known(s.wanted, s.wanted_count, s.count);
}

void Model::reserve(int count, int wanted_count) {
    auto wanted = size_t(wanted_count);
    tail_.resize(std::max(tail_.size(), wanted * CHUNK)), tops_.resize(std::max(tops_.size(), wanted * size_t(chunks())));
    has_tops_.assign(wanted, 0);
    if (count <= reserved_) return;
    auto n = size_t(count);
    x_.resize(n * width_), normed_.resize(n * width_), attended_.resize(n * width_), inner_values_.resize(n * inner_);
    qkv_.resize(n * layers_[0].qkv.outputs);
    if (shape_.bits != 32) {
        q_.resize(n * width_), scales_.resize(n * width_ / BLOCK), offsets_.resize(n * width_ / BLOCK);
        inner_q_.resize(n * inner_), inner_scales_.resize(n * inner_ / BLOCK), inner_offsets_.resize(n * inner_ / BLOCK);
    }
    reserved_ = count;  // only now: any of these can throw
}

void Model::forward(const Step &step) {
    given_ = nullptr;
    int scored = step.scores ? step.scores->count : 0;
    reserve(std::max(step.count, step.wanted_count + scored), step.wanted_count);
    if (scored) reserve_scores(step);
    raised_.assign(step.wanted, step.wanted + step.wanted_count);
    if (scored) raised_.insert(raised_.end(), step.scores->places, step.scores->places + scored);
    two_.used = in_two_passes(step);
    all_numbers_ = true;
    runs_.clear();
    for (int i = 0; i < step.count; i++) {
        if (i && step.rows[i] == step.rows[i - 1]) runs_.back().count++;
        else runs_.push_back({i, 1});
    }
    team_.run([&] { work(step); });
    given_ = step.logits;
    has_tops_.assign(has_tops_.size(), all_numbers_ && notes_tops(step));
}

// What each thread does; all memory for it was reserved before. The phases of a layer are those of GPT-2: q k v, attention,
// projection, up and activation, down. Norms of few rows are done at the meetings between them.
void Model::work(const Step &step) {
    float *scratch = &scratch_[scratch_size_ * size_t(Team::place())];
    int count = step.count, wide = layers_[0].qkv.outputs;
    Rows normed{normed_.data(), width_, q_.data(), scales_.data(), offsets_.data()};
    Rows attended{attended_.data(), width_, q_.data(), scales_.data(), offsets_.data()};
    Rows inner{inner_values_.data(), inner_, inner_q_.data(), inner_scales_.data(), inner_offsets_.data()};
    Finish finish = shape_.activation == GPT2D_GELU_NEW ? Finish::gelu_new : Finish::activate;
    const Rows *blocks = shape_.bits == 32 ? nullptr : &inner;
    Result raised{inner_values_.data(), inner_, finish, shape_.activation, blocks, layers_[0].down.zero()};
    bool whole = head_ % BLOCK == 0;  // no block of inputs lies in two heads
    int begin = step.look ? step.look->layer : 0, layers = step.look ? begin + 1 : shape_.layers;
    team_.share(count, 1, [&](int first, int end) {
        for (int i = first; i < end; i++) {
            if (step.look) std::copy_n(step.look->x + size_t(i) * width_, width_, &x_[size_t(i) * width_]);
            else ops_.embed(table_, step.ids[i], places_ + size_t(step.positions[i]) * width_, &x_[size_t(i) * width_]);
            normalise(layers_[size_t(begin)].before_attention, x_.data(), i, i, layers_[size_t(begin)].qkv);
        }
    });
    for (int l = begin; l < layers; l++) {
        const Layer &layer = layers_[size_t(l)];
        keep(step, 0, normed);
        multiply(layer.qkv, normed, count, {qkv_.data(), wide, Finish::store});
        team_.share(int(runs_.size()) * shape_.heads, 1, [&](int first, int end) {
            for (int unit = first; unit < end; unit++) {
                attend(l, step, unit, scratch);
                const Run &run = runs_[size_t(unit / shape_.heads)];
                for (int i = 0; whole && i < run.count; i++) pack(attended, run.first + i, unit % shape_.heads * head_, head_, layer.out);
            }
        });
        if (!whole) {
            team_.share(count, 1, [&](int first, int end) {
                for (int i = first; i < end; i++) pack(attended, i, 0, width_, layer.out);
            });
        }
        keep(step, 1, attended);
        multiply(layer.out, attended, count, {x_.data(), width_, Finish::add}, Next{layer.before_mlp, layer.up, count, nullptr});
        keep(step, 2, normed);
        multiply(layer.up, normed, count, raised);
        keep(step, 3, inner);
        bool last = l == shape_.layers - 1;
        multiply(layer.down, inner, count, {x_.data(), width_, Finish::add},
                 last ? Next{final_norm_, lm_head_, int(raised_.size()), raised_.data()}
                      : Next{layers_[size_t(l) + 1].before_attention, layers_[size_t(l) + 1].qkv, count, nullptr});
    }
    if (step.look) {
        team_.work_off(count, 1, [&](int first, int end) {
            std::copy(&x_[size_t(first) * width_], &x_[size_t(end) * width_], step.look->x + size_t(first) * width_);
        });
        return;
    }
    raise_head(normed, step);
    if (step.scores && step.scores->count) {
        if (step.wanted_count) team_.barrier();
        size_t at = size_t(step.wanted_count) * width_;
        Rows scored{normed_.data() + at, width_};
        if (lm_head_.bits != 32) scored.q = &q_[at], scored.scales = &scales_[at / BLOCK], scored.offsets = &offsets_[at / BLOCK];
        raise_scores(scored, step);
    }
    if (step.hidden) {
        team_.barrier();  // the norms go where the head reads
        team_.work_off(count, 1, [&](int first, int end) {
            for (int i = first; i < end; i++) {
                float *y = &normed_[size_t(i) * width_];
                ops_.norm(&x_[size_t(i) * width_], final_norm_.gain, final_norm_.bias, shape_.width, width_, shape_.epsilon, y);
                std::copy_n(y, shape_.width, step.hidden + size_t(i) * shape_.width);
            }
        });
    }
}

// What a matrix is multiplied by, for who looks on.
void Model::keep(const Step &step, int matrix, const Rows &x) {
    if (!step.look) return;
    team_.share(step.count, 1, [&](int first, int end) {
        size_t from = size_t(first) * x.stride, to = size_t(end) * x.stride;
        std::copy(x.q + from, x.q + to, step.look->q[matrix] + from);
        std::copy(x.scales + from / BLOCK, x.scales + to / BLOCK, step.look->scales[matrix] + from / BLOCK);
    });
}

// Row `row` of x, normalised, becomes row `to` of what is multiplied next.
void Model::normalise(const Norm &norm, const float *x, int row, int to, const Matrix &next) {
    float *y = &normed_[size_t(to) * width_];
    ops_.norm(x + size_t(row) * width_, norm.gain, norm.bias, shape_.width, width_, shape_.epsilon, y);
    if (next.bits != 32) {
        size_t at = size_t(to) * width_;
        ops_.quantise(y, width_, next.zero(), &q_[at], &scales_[at / BLOCK], &offsets_[at / BLOCK]);
    }
    if (two_.used && &next == &lm_head_) prepare(to);
}

// Make blocks of `width` floats of a row, where what is multiplied next wants them.
void Model::pack(const Rows &rows, int row, int first, int width, const Matrix &next) {
    if (next.bits == 32) return;
    size_t at = size_t(row) * rows.stride + first;
    ops_.quantise(rows.floats + at, width, next.zero(), rows.q + at, rows.scales + at / BLOCK, rows.offsets + at / BLOCK);
}

// Panels that are taken at a time: some eight parts for each thread.
int Model::part_of(const Matrix &m) const { return std::max(1, m.panels() / (8 * team_.used())); }

template <class Then>
void Model::multiply(const Matrix &m, const Rows &x, int count, const Result &result, Then then) {
    team_.share(m.panels(), part_of(m), [&](int first, int end) { ops_.matmul(m, x, count, result, first, end); }, then);
}

void Model::multiply(const Matrix &m, const Rows &x, int count, const Result &result, const Next &next) {
    bool few = next.count <= ALONE;
    auto norms = [&](int first, int end) {
        for (int i = first; i < end; i++) normalise(next.norm, x_.data(), next.rows ? next.rows[i] : i, i, next.matrix);
    };
    multiply(m, x, count, result, [&] {
        if (few) norms(0, next.count);
    });
    if (!few) team_.share(next.count, 1, norms);
}

void Model::attend(int layer, const Step &step, int unit, float *scratch) {
    const Run &run = runs_[size_t(unit / shape_.heads)];
    int head = unit % shape_.heads, stride = layers_[0].qkv.outputs;
    const float *q = &qkv_[size_t(run.first) * stride + size_t(head) * head_];
    Attention a{};
    a.q = q, a.k = q + shape_.width, a.v = q + 2 * shape_.width, a.stride = stride;
    a.head = head_, a.padded = padded_head_, a.past = step.positions[run.first], a.count = run.count;
    a.factor = 1 / ((shape_.scaled ? std::sqrt(float(head_)) : 1) * (shape_.scaled_by_layer ? float(layer + 1) : 1));
    a.cache = cache(layer, step.rows[run.first], head);
    int next = std::min(unit + 1, int(runs_.size()) * shape_.heads - 1);
    a.next = cache(layer, step.rows[runs_[size_t(next / shape_.heads)].first], next % shape_.heads).first;
    a.out = &attended_[size_t(run.first) * width_ + size_t(head) * head_], a.out_stride = width_;
    a.scratch = scratch;
    ops_.attend(a);
}

Cache Model::cache(int layer, int row, int head) const {
    size_t at = (size_t(layer) * shape_.heads + head) * 2 * Cache::half_block(padded_head_, shape_.cache_bits);
    return {cache_row(row) + at, cache_stride_, shape_.cache_bits};
}

unsigned char *Model::cache_row(int row) const { return cache_->data() + size_t(row) * row_bytes_ + row_begin_; }

void Model::move(int source, int target, int first, int positions) {
    if (source == target) return;
    // Whole blocks of 16 positions. Where the first copied position is inside one, the rows are the same before it.
    size_t at = size_t(first) / 16 * cache_stride_, end = size_t(padded(positions, 16)) / 16 * cache_stride_;
    std::memcpy(cache_row(target) + at, cache_row(source) + at, end - at);
}

void Model::copy(int row, int positions, void *keys, void *values, bool out) {
    size_t one = size_t(positions) * Cache::position(head_, shape_.cache_bits);
    team_.run([&] {
        team_.share(shape_.layers * shape_.heads, 1, [&](int first, int end) {
            for (int unit = first; unit < end; unit++) {
                auto *k = static_cast<unsigned char *>(keys) + one * unit, *v = static_cast<unsigned char *>(values) + one * unit;
                Cache c = cache(unit / shape_.heads, row, unit % shape_.heads);
                if (out) ops_.copy_out(c, padded_head_, head_, positions, k, v);
                else ops_.copy_in(c, padded_head_, head_, positions, k, v);
            }
        });
    });
}

// A row is a thread's: few rows are chosen from at a time, and a row's order of sums is the same everywhere.
bool Model::choose(int count, const int32_t *rows, float *logits, const gpt2d_choice *const *choices, int32_t *tokens) {
    if (count < 0) return false;
    bool ours = !logits;
    auto in_step = [&](int row) { return row >= 0 && size_t(row) < has_tops_.size(); };
    if (ours && (!given_ || !std::all_of(rows, rows + count, in_step))) return false;
    if (ours) logits = given_;
    for (Draft &draft : drafts_) draft.reserve(shape_.vocabulary);
    auto one = [&](int i) {
        auto at = size_t(rows[i]);
        const float *tops = ours && has_tops_[at] ? &tops_[at * size_t(chunks())] : nullptr;
        if (ours) has_tops_[at] = 0;  // the choice may change logits
        tokens[i] = ops_.sample(logits + at * size_t(shape_.vocabulary), shape_.vocabulary, *choices[i], tops, drafts_[size_t(Team::place())]);
    };
    if (count == 1) one(0);
    else team_.run([&] { team_.work_off(count, 1, [&](int i, int) { one(i); }); });
    return true;
}

}  // namespace gpt2d
