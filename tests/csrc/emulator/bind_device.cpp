// Small kernels that show the emulator at work: tests/csrc/test_cuda_emulator.py.
#include "bind.h"
#include "cuda/device.h"
#include "cuda/element.h"

namespace icckd::cuda {
namespace {

using namespace emulator;

// out[thread] for every collective of a warp, 32 numbers each.
void collectives(Buffer x, Buffer out, Timing timing) {
  launch({.threads = 64}, timing, [in = x.data<int>(), y = out.mutable_data<int>()] {
    const int value = in[thread()];
    int* mine = y + thread();
    mine[0 * 64] = shuffle(value, (lane() + 5) % 32);
    mine[1 * 64] = shuffle_xor(value, 3);
    mine[2 * 64] = shuffle_up(value, 7);
    mine[3 * 64] = static_cast<int>(ballot(value % 2 == 1));
    mine[4 * 64] = static_cast<int>(match_any(value));
    mine[5 * 64] = warp_sum(value);
    mine[6 * 64] = static_cast<int>(warp_max(static_cast<float>(value)));
    mine[7 * 64] = highest_bit(static_cast<unsigned>(value)) * 100 + lowest_bit(static_cast<unsigned>(value)) * 10 +
                   count_bits(static_cast<unsigned>(value));
  });
}

// Loads a (32, 8) 16-bit matrix of four 8 × 8 ones, row by row or transposed, as the lanes' four registers.
void load_matrix(Buffer x, bool transposed, Buffer out, Timing timing) {
  launch({.shared_bytes = 512}, timing, [=, in = x.data<unsigned char>(), y = out.mutable_data<uint32_t>()] {
    unsigned char* row = shared_memory() + 16 * lane();
    store16(row, load16(in + 16 * lane()));
    warp_barrier();
    uint32_t r[4];
    transposed ? load_matrix4_transposed(r, row) : load_matrix4(r, row);
    for (int m = 0; m < 4; ++m) y[4 * lane() + m] = r[m];
  });
}

// d (16, 8) += a (16, 16) b (16, 8), from fragments that are gathered element by element.
template <class E>
void mma(Buffer a, Buffer b, Buffer d, Timing timing) {
  launch({}, timing, [pa = a.data<uint16_t>(), pb = b.data<uint16_t>(), pd = d.mutable_data<float>()] {
    const int group = lane() / 4, pair = lane() % 4 * 2;
    const auto of_a = [&](int row, int column) { return pa[16 * row + column] | static_cast<uint32_t>(pa[16 * row + column + 1]) << 16; };
    const auto of_b = [&](int row) { return pb[8 * row + group] | static_cast<uint32_t>(pb[8 * (row + 1) + group]) << 16; };
    const uint32_t fragment_a[4] = {of_a(group, pair), of_a(group + 8, pair), of_a(group, pair + 8), of_a(group + 8, pair + 8)};
    const uint32_t fragment_b[2] = {of_b(pair), of_b(pair + 8)};
    float* top = pd + 8 * group + pair;
    float sum[4] = {top[0], top[1], top[64], top[65]};
    mma_16x8x16<E>(sum, fragment_a, fragment_b);
    top[0] = sum[0], top[1] = sum[1], top[64] = sum[2], top[65] = sum[3];
  });
}

// d (16, 8) += a (16, 8) b (8, 8).
void mma_tf32(Buffer a, Buffer b, Buffer d, bool rounded, Timing timing) {
  launch({}, timing, [=, pa = a.data<float>(), pb = b.data<float>(), pd = d.mutable_data<float>()] {
    const auto bits = [&](float x) { return rounded ? to_tf32(x) : float_bits(x); };
    const int group = lane() / 4, number = lane() % 4;
    const float* of_a = pa + 8 * group + number;
    const uint32_t fragment_a[4] = {bits(of_a[0]), bits(of_a[64]), bits(of_a[4]), bits(of_a[68])};
    const uint32_t fragment_b[2] = {bits(pb[8 * number + group]), bits(pb[8 * (number + 4) + group])};
    float* top = pd + 8 * group + 2 * number;
    float sum[4] = {top[0], top[1], top[64], top[65]};
    mma_16x8x8_tf32(sum, fragment_a, fragment_b);
    top[0] = sum[0], top[1] = sum[1], top[64] = sum[2], top[65] = sum[3];
  });
}

// What a copy of 512 bytes by cp.async brings, with or without the wait.
void copy_async(Buffer x, Buffer out, int valid, bool waits, Timing timing) {
  launch({.shared_bytes = 512}, timing, [=, in = x.data<unsigned char>(), y = out.mutable_data<unsigned char>()] {
    unsigned char* mine = shared_memory() + 16 * lane();
    copy_async16_last(mine, in + 16 * lane(), lane() < valid);
    commit_copies();
    if (waits) wait_copies<0>();
    store16(y + 16 * lane(), load16(mine));
  });
}

// Two groups of copies; only the older is waited for.
void copy_groups(Buffer x, Buffer out, Timing timing) {
  launch({.shared_bytes = 1024}, timing, [in = x.data<unsigned char>(), y = out.mutable_data<unsigned char>()] {
    unsigned char* mine = shared_memory() + 16 * lane();
    for (int group = 0; group < 2; ++group) {
      copy_async16_last(mine + 512 * group, in + 512 * group + 16 * lane(), true);
      commit_copies();
    }
    wait_copies<1>();
    for (int group = 0; group < 2; ++group) store16(y + 512 * group + 16 * lane(), load16(mine + 512 * group));
    wait_copies<0>();
  });
}

// Every thread writes its number, and reads its neighbour's.
void neighbours(Buffer out, bool waits, Timing timing) {
  launch({.threads = 64, .shared_bytes = 256}, timing, [=, y = out.mutable_data<float>()] {
    float* shared = reinterpret_cast<float*>(shared_memory());
    shared[thread()] = static_cast<float>(thread());
    if (waits) block_barrier();
    y[thread()] = shared[(thread() + 1) % 64] + shared[(thread() + 63) % 64];
  });
}

// The positions that blocks and threads see.
void positions(Buffer out, Timing timing) {
  launch({.blocks = 3, .blocks_y = 2, .threads = 32}, timing, [y = out.mutable_data<int>()] {
    const int number = (block_y() * blocks() + block()) * threads() + thread();
    y[number] = atomic_add(y + 192, 1) * 0 + number;
  });
}

// Every mistake by its name.
void mistake(const std::string& name, Buffer x, Timing timing) {
  launch({.threads = 64, .shared_bytes = 256}, timing, [=, p = x.mutable_data<float>()] {
    float* shared = reinterpret_cast<float*>(shared_memory());
    if (name == "half a warp shuffles" && lane() < 16) shuffle(0, 0);
    if (name == "lanes at different calls") {
      if (lane() < 16)
        shuffle(0, 0);
      else
        ballot(true);
    }
    if (name == "a thread misses the barrier" && thread() != 5) block_barrier();
    if (name == "barriers at two places") {
      if (warp() == 0)
        block_barrier();
      else
        block_barrier();
    }
    if (name == "group of too few" && warp() == 0) group_barrier(1, 64);
    if (name == "read behind") p[0] = p[4096 + thread()];
    if (name == "read before") p[0] = p[-4096];
    if (name == "write behind") p[39] = 1;
    if (name == "write behind shared memory") shared[64 + thread()] = 1;
    if (name == "far behind shared memory") shared[1 << 16] = 1;
    if (name == "vector outside of shared memory") store16(shared + 64, {});
    if (name == "misaligned vector") load16(shared + 1);
    if (name == "misaligned global vector") load16(p + 1);
    if (name == "shared for global") store16_streaming(shared, {});
    if (name == "shuffle from nowhere") shuffle(1, 32);
    if (name == "assertion") ICCKD_ASSERT(thread() < 63);
  });
}

void write_read_only(Buffer x, Timing timing) {
  launch({}, timing, [p = const_cast<float*>(x.data<float>())] { p[lane()] = 1; });
}

#if ICCKD_HAS_WGMMA

// d (64, N) += a (64, 16 k) · b, with b (N, 16 k), or (16 k, N) where transposed. Operands are brought to the swizzled layout here, by
// rows of 64 elements and atoms of 8 rows, atoms first along the rows of 64, then along the others.
template <class E, int N, bool transposed>
void wgmma(Buffer a, Buffer b, Buffer d, int depth, bool a_in_registers, const std::string& fault, Timing timing) {
  const int a_bytes = 64 * 128 * ((depth + 63) / 64);
  const int b_rows = transposed ? depth : N, b_columns = transposed ? N : depth;
  const int b_bytes = (b_rows + 7) / 8 * 1024 * ((b_columns + 63) / 64);
  launch({.threads = 128, .shared_bytes = a_bytes + b_bytes}, timing,
         [=, pa = a.data<uint16_t>(), pb = b.data<uint16_t>(), pd = d.mutable_data<float>()] {
           // Column c of 64 in a row of `columns`: panels of 64 columns one after the other.
           const auto fill = [&](unsigned char* to, const uint16_t* from, int rows, int columns) {
             const int panel_bytes = (rows + 7) / 8 * 1024;
             for (int i = thread(); i < rows * columns; i += threads()) {
               const int row = i / columns, column = i % columns;
               const uint32_t place = swizzled(static_cast<uint32_t>(row * 128 + column % 64 * 2));
               *reinterpret_cast<uint16_t*>(to + column / 64 * panel_bytes + place) = from[i];
             }
           };
           unsigned char* shared_a = shared_memory();
           unsigned char* shared_b = shared_memory() + a_bytes;
           fill(shared_a, pa, 64, depth);
           fill(shared_b, pb, b_rows, b_columns);
           fence_shared_async();
           block_barrier();
           float sum[N / 8][4];
           const int row = warp() % 4 * 16 + lane() / 4;
           const auto at = [&](int j, int i) -> float& { return pd[(row + i / 2 * 8) * N + 8 * j + lane() % 4 * 2 + i % 2]; };
           for (int j = 0; j < N / 8; ++j)
             for (int i = 0; i < 4; ++i) sum[j][i] = at(j, i);
           if (fault != "no fence") wgmma_fence();
           for (int k = 0; k < depth; k += 16) {
             uint64_t of_b;
             if constexpr (transposed)
               of_b = wgmma_descriptor(shared_b + k / 8 * 1024, (b_rows + 7) / 8 * 1024, 1024);
             else
               of_b = wgmma_descriptor(shared_b + k / 64 * (b_rows * 128) + k % 64 * 2, 0, 1024);
             if (a_in_registers) {
               const auto of_a = [&](int r, int c) {
                 const uint16_t* p = pa + (row + r) * depth + k + lane() % 4 * 2 + c;
                 return p[0] | static_cast<uint32_t>(p[1]) << 16;
               };
               const uint32_t fragment[4] = {of_a(0, 0), of_a(8, 0), of_a(0, 8), of_a(8, 8)};
               wgmma_64xNx16<E, N, transposed>(sum, fragment, of_b);
             } else if (fault == "different descriptors") {
               wgmma_64xNx16<E, N, transposed>(sum, wgmma_descriptor(shared_a + (warp() == 3 ? 1024 : 0), 0, 1024), of_b);
             } else {
               wgmma_64xNx16<E, N, transposed>(sum, wgmma_descriptor(shared_a + k / 64 * (64 * 128) + k % 64 * 2, 0, 1024), of_b);
             }
           }
           wgmma_commit();
           if (fault != "no wait") wgmma_wait<0>();
           for (int j = 0; j < N / 8; ++j)
             for (int i = 0; i < 4; ++i) at(j, i) = sum[j][i];
           if (fault == "no wait") wgmma_wait<0>();
         });
}

template <class E, int N>
void define_wgmma(py::module_& m, const char* name) {
  m.def(name, [](Buffer& a, Buffer& b, Buffer& d, int depth, bool transposed, bool a_in_registers, const std::string& fault, Timing timing) {
    auto* run = transposed ? &wgmma<E, N, true> : &wgmma<E, N, false>;
    run(std::move(a), std::move(b), std::move(d), depth, a_in_registers, fault, timing);
  });
}

#endif

// y = the elements of x as floats, back as elements: through vectors where `vectors`.
template <class E>
void convert(Buffer x, Buffer floats, Buffer back, Timing timing) {
  launch({}, timing, [in = x.data<E>(), y = floats.mutable_data<float>(), z = back.mutable_data<E>()] {
    constexpr int n = per_vector<E>;
    float v[n];
    to_floats<E>(load16(in + n * lane()), v);
    for (int i = 0; i < n; ++i) y[n * lane() + i] = v[i];
    store16(z + n * lane(), from_floats<E>(v));
  });
}

template <class E>
void round_to(Buffer x, Buffer out, int count, Timing timing) {
  launch({}, timing, [=, in = x.data<float>(), y = out.mutable_data<E>()] {
    for (int i = lane(); i < count; i += warp_size) y[i] = from_float<E>(in[i]);
  });
}

}  // namespace
}  // namespace icckd::cuda

ICCKD_MODULE(m) {
  using namespace icckd;
  using namespace icckd::cuda;
  m.def("collectives", &collectives);
  m.def("load_matrix", &load_matrix);
  m.def("mma_bfloat16", &mma<bfloat16>);
  m.def("mma_float16", &mma<float16>);
  m.def("mma_tf32", &mma_tf32);
  m.def("copy_async", &copy_async);
  m.def("copy_groups", &copy_groups);
  m.def("neighbours", &neighbours);
  m.def("positions", &positions);
  m.def("mistake", &mistake);
  m.def("write_read_only", &write_read_only);
  m.def("convert_bfloat16", &convert<bfloat16>);
  m.def("convert_float16", &convert<float16>);
  m.def("convert_float32", &convert<float>);
  m.def("round_bfloat16", &round_to<bfloat16>);
  m.def("round_float16", &round_to<float16>);
  m.def("swizzled", &swizzled);
#if ICCKD_HAS_WGMMA
  define_wgmma<bfloat16, 16>(m, "wgmma_bfloat16_16");
  define_wgmma<bfloat16, 64>(m, "wgmma_bfloat16_64");
  define_wgmma<float16, 16>(m, "wgmma_float16_16");
  define_wgmma<float16, 64>(m, "wgmma_float16_64");
#endif
}
