// PscCrop's CUDA kernel, from the view of one thread of one block.
//
// Written against a `Team` (thread index, block index, barrier, shared memory) instead of CUDA's
// built-ins, so that the same body also compiles as C++ with std::thread and std::barrier: that is
// how its logic is tested without a GPU.
//
// A block makes TILE_ROWS x tile_columns output pixels of one window. Each thread owns 16 bytes of
// an input row; it walks down the rows and keeps two sums per byte, one for the current output row
// and one for the next, so every row is read once. A finished row of sums goes to shared memory,
// where one thread an output column sums its taps across. Wide tiles repeat that chunk by chunk
// and add up, so neither the image's size nor the filter's is limited.
//
// Occupancy, by ptxas of CUDA 13.0 and the rules of its cuda_occupancy.h (computed, not measured).
// A block takes 32,544 bytes of shared memory and, a thread, 117 (sm_75) to 128 registers, 138 on
// sm_120, without spills. So a multiprocessor holds 2 blocks on sm_75, 3 on sm_86, sm_89 and sm_120
// (shared memory is the limit) and 4 on sm_80, sm_87, sm_90 and sm_100 (registers are); with 33,088
// bytes it was 1 on sm_75 and 2 on sm_86, sm_89 and sm_120. Each block has 8 KB of loads in flight
// (AHEAD rows of CHUNK_BYTES), 1.4 MB on an L4 of 58 multiprocessors. At its 300 GB/s a latency of
// 1 us needs 0.3 MB, so what is in flight should not be what holds its memory back; a fourth block
// would need a tile of fewer rows, in which neighbours read more rows twice.
#ifndef GEOMAG_EDGE_PSC_BLOCK_H
#define GEOMAG_EDGE_PSC_BLOCK_H

#include "psc_core.h"

#ifdef __CUDACC__
#define PSC_UNROLL _Pragma("unroll")
#else
#define PSC_UNROLL
#endif

namespace psc {

enum {
  BLOCK_THREADS = 128,
  THREAD_BYTES = 16,
  CHUNK_BYTES = BLOCK_THREADS * THREAD_BYTES,
  TILE_ROWS = 8,
  TILE_COLUMNS = BLOCK_THREADS,  // at most; one thread an output column
  AHEAD = 4,                     // rows whose loads are in flight at once
  SHARED_BYTES = 32768           // at most, see above
};

// The launch's arguments. Interleaved images have `pixel` 3 or 4 and `channel` 1 or -1; planar ones
// have `pixel` 1 and their planes `channel` bytes apart.
struct Launch {
  const u8* image;         // channel 0 of pixel (0, 0)
  i64 height, width, row;  // row: bytes from one row to the next
  i64 pixel, channel;      // bytes from pixel to pixel, from channel to channel
  const float* boxes;      // [K, 4]
  const float* mean_std;   // [2, 3]
  i64 size;
  i64 tile_columns;
  void* out;               // [K, 3, size, size]
};

// Taps of N output pixels, part by part: as `Taps` each would be padded from 28 to 32 bytes.
template <int N>
struct TapsList {
  i64 begin[N], end[N];
  float offset[N], slope[N], gain[N];

  PSC_FN Taps at(i64 i) const {
    Taps taps = {begin[i], end[i], offset[i], slope[i], gain[i]};
    return taps;
  }
  PSC_FN void put(i64 i, const Taps& taps) {
    begin[i] = taps.begin;
    end[i] = taps.end;
    offset[i] = taps.offset;
    slope[i] = taps.slope;
    gain[i] = taps.gain;
  }
};

// What a block shares.
struct Shared {
  alignas(16) float sums[2][CHUNK_BYTES];        // one row of column sums, double-buffered
  float total[TILE_ROWS][3][TILE_COLUMNS];       // the tile, summed over chunks
  TapsList<TILE_ROWS + 2> down;                  // taps of the tile's rows, one before, one after
  TapsList<TILE_COLUMNS> across;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "fewer blocks would fit a multiprocessor");

struct Bytes16 {
  u32 words[4];
};

// The word at an aligned address, least byte first.
PSC_FN u32 load_word(const u8* at) {
#ifdef __CUDA_ARCH__
  return __ldg((const u32*)at);
#else
  return (u32)at[0] | (u32)at[1] << 8 | (u32)at[2] << 16 | (u32)at[3] << 24;
#endif
}

// The word that begins `shift` bits (0, 8, 16, 24) into `low` and goes on in `high`.
PSC_FN u32 joined(u32 low, u32 high, u32 shift) {
#ifdef __CUDA_ARCH__
  return __funnelshift_r(low, high, shift);
#else
  return shift ? low >> shift | high << (32u - shift) : low;
#endif
}

// 16 bytes at `at`. Vector loads where the address allows, words and a shift otherwise; single
// bytes where these would reach out of [first, last), the bytes of the image's row: a last row may
// end where the memory does.
PSC_FN Bytes16 load16(const u8* at, const u8* first, const u8* last) {
  Bytes16 bytes;
  const u32 ahead = (u32)((unsigned long long)at & 3ull);
  const u8* aligned = at - ahead;
  if (aligned < first || aligned + (ahead ? 20 : 16) > last) {
    for (int w = 0; w < 4; ++w) {
      u32 word = 0;
      for (int b = 0; b < 4; ++b) {
        const u8* byte = at + 4 * w + b;
        if (byte >= first && byte < last) word |= (u32)*byte << (8 * b);
      }
      bytes.words[w] = word;
    }
    return bytes;
  }
#ifdef __CUDA_ARCH__
  if ((unsigned long long)at % 16 == 0) {
    const uint4 v = __ldg((const uint4*)at);
    bytes.words[0] = v.x; bytes.words[1] = v.y; bytes.words[2] = v.z; bytes.words[3] = v.w;
    return bytes;
  }
#endif
  u32 low = load_word(aligned);
  for (int w = 0; w < 4; ++w) {
    const u32 high = w < 3 || ahead ? load_word(aligned + 4 * w + 4) : 0u;
    bytes.words[w] = joined(low, high, 8u * ahead);
    low = high;
  }
  return bytes;
}

// sums[i] += weight * bytes[i]
PSC_FN void add16(float* sums, const Bytes16& bytes, float weight) {
  for (int i = 0; i < THREAD_BYTES; ++i) {
    sums[i] += weight * (float)((bytes.words[i / 4] >> (8 * (i % 4))) & 0xffu);
  }
}

PSC_FN void put(float* out, i64 at, float value) { out[at] = value; }
PSC_FN void put(u16* out, i64 at, float value) { out[at] = half_bits(value); }

PSC_FN float not_a_number() {
  union { u32 u; float f; } bits;
  bits.u = 0x7fc00000u;
  return bits.f;
}

PSC_FN bool usable(float low, float high) {  // false for NaN, infinite, empty and inverted
  return high - low > 0.0f && high - low < 3.4e38f && fabsf(low) < 3.4e38f;
}

// One thread's part in one block. Block index: x tile of columns, y tile of rows, z window.
template <class Team, class Out>
PSC_FN void crop_tile(const Launch& launch, const Team& team, Shared& shared) {
  const int thread = team.thread();
  const i64 size = launch.size, window = team.block_z();
  const float* box = launch.boxes + 4 * window;
  Out* out = (Out*)launch.out + window * 3 * size * size;
  const i64 first_row = team.block_y() * TILE_ROWS;
  const i64 last_row = first_row + TILE_ROWS < size ? first_row + TILE_ROWS : size;
  const i64 first_column = team.block_x() * launch.tile_columns;
  const i64 last_column =
      first_column + launch.tile_columns < size ? first_column + launch.tile_columns : size;
  const i64 my_column = first_column + thread;

  // A box that the host could not check (it lies in device memory) spoils its own view only.
  const bool good = usable(box[0], box[2]) && usable(box[1], box[3]);
  const Axis x = make_axis(box[0], box[2], size, launch.width);
  const Axis y = make_axis(box[1], box[3], size, launch.height);

  // Output pixels of the tile whose centres are in the image: [row_begin, row_end) and columns.
  i64 row_begin = first_row, row_end = last_row;
  i64 column_begin = first_column, column_end = last_column;
  if (good) {
    while (row_begin < row_end && !inside(y, centre(y, row_begin))) ++row_begin;
    while (row_begin < row_end && !inside(y, centre(y, row_end - 1))) --row_end;
    const i64 from = first_at_or_beyond(x, size, 0.0);
    const i64 to = first_at_or_beyond(x, size, (double)x.extent);
    if (from > column_begin) column_begin = from;
    if (to < column_end) column_end = to;
  }
  const bool empty = !good || row_begin >= row_end || column_begin >= column_end;

  // Double precision is slow on most GPUs: each tap is computed once, by one thread.
  const bool mine = !empty && my_column >= column_begin && my_column < column_end;
  if (mine) shared.across.put(thread, taps_at(x, centre(x, my_column)));
  if (!empty && thread < TILE_ROWS + 2) {
    const i64 s = first_row - 1 + thread;
    if (s >= 0 && s < size && inside(y, centre(y, s))) {
      shared.down.put(thread, taps_at(y, centre(y, s)));
    } else {
      Taps none = {0, 0, 0.0f, 0.0f, 0.0f};  // weighs nothing anywhere
      shared.down.put(thread, none);
    }
  }
  for (i64 i = thread; i < TILE_ROWS * 3 * TILE_COLUMNS; i += BLOCK_THREADS) {
    (&shared.total[0][0][0])[i] = 0.0f;
  }
  team.barrier();

  if (!empty) {
    const bool planar = launch.pixel == 1;
    const i64 pitch = launch.pixel;
    const i64 pixel_begin = shared.across.begin[column_begin - first_column];
    const i64 pixel_end = shared.across.end[column_end - 1 - first_column];
    const bool pair = y.scale >= 1.0;
    const auto row_taps = [&](i64 s) -> Taps { return shared.down.at(s - first_row + 1); };
    int buffer = 0;

    for (int plane = 0; plane < (planar ? 3 : 1); ++plane) {
      // The lowest byte of a pixel: its blue one where the channels run backwards.
      const u8* base = launch.image + plane * launch.channel +
                       (!planar && launch.channel < 0 ? 2 * launch.channel : 0);
      const i64 row_bytes = planar ? launch.width : pitch * (launch.width - 1) + 3;
      // Chunks start at an aligned address where rows keep their alignment; the bytes before the
      // window's first one belong to no tap.
      const i64 window_bytes = pixel_end * pitch;
      i64 chunk = pixel_begin * pitch;
      chunk -= (i64)(((unsigned long long)base + (unsigned long long)chunk) % 16);

      for (; chunk < window_bytes; chunk += CHUNK_BYTES) {
        const i64 my_byte = chunk + thread * THREAD_BYTES;
        const bool reads = my_byte < window_bytes && my_byte + THREAD_BYTES > 0;
        float now[THREAD_BYTES], later[THREAD_BYTES];
        for (int i = 0; i < THREAD_BYTES; ++i) now[i] = later[i] = 0.0f;

        // A tile starts one output row early for the sums that two tiles share.
        i64 s = row_begin;
        if (pair && s > 0 && row_taps(s - 1).end > 0) s -= 1;
        bool first = true;
        for (; s < row_end; ++s) {
          i64 row = row_taps(s).begin;
          if (pair && !first) row = row_taps(s - 1).end;
          if (pair && first && s < row_begin) row = row_taps(row_begin).begin;
          first = false;
          const i64 stop = row_taps(s).end;
          if (!pair) {
            for (int i = 0; i < THREAD_BYTES; ++i) now[i] = 0.0f;
          }
          if (reads) {
            for (; row < stop; row += AHEAD) {
              Bytes16 bytes[AHEAD];
PSC_UNROLL
              for (int a = 0; a < AHEAD; ++a) {
                const i64 at = row + a < stop ? row + a : stop - 1;
                const u8* line = base + at * launch.row;
                bytes[a] = load16(line + my_byte, line, line + row_bytes);
              }
PSC_UNROLL
              for (int a = 0; a < AHEAD; ++a) {
                if (row + a < stop) {
                  add16(now, bytes[a], weight(row_taps(s), row + a - row_taps(s).begin));
                  if (pair) add16(later, bytes[a], weight(row_taps(s + 1), row + a - row_taps(s + 1).begin));
                }
              }
            }
          }
          if (s >= row_begin) {
            float* sums = shared.sums[buffer];
            for (int i = 0; i < THREAD_BYTES; ++i) sums[thread * THREAD_BYTES + i] = now[i];
            team.barrier();
            if (mine) {
              // Taps of my column that lie in this chunk; a pixel may straddle two chunks, so the
              // test is by byte.
              const Taps taps = shared.across.at(thread);
              for (int c = planar ? plane : 0; c < (planar ? plane + 1 : 3); ++c) {
                const i64 lane = planar ? 0 : (launch.channel < 0 ? 2 - c : c);
                const i64 origin = taps.begin * pitch + lane - chunk;  // byte of tap 0 in the chunk
                i64 k = origin < 0 ? (pitch - 1 - origin) / pitch : 0;
                i64 k_end = origin < CHUNK_BYTES ? (CHUNK_BYTES - 1 - origin) / pitch + 1 : 0;
                if (k_end > taps.end - taps.begin) k_end = taps.end - taps.begin;
                float sum = 0.0f;
                for (; k < k_end; ++k) sum += weight(taps, k) * sums[origin + k * pitch];
                shared.total[s - first_row][c][thread] += sum;
              }
            }
            buffer ^= 1;  // the next row may be written while this one is still summed
          }
          for (int i = 0; i < THREAD_BYTES; ++i) {
            now[i] = later[i];
            later[i] = 0.0f;
          }
        }
      }
    }
  }

  if (my_column < last_column) {
    const float spoilt = good ? 0.0f : not_a_number();
    for (int c = 0; c < 3; ++c) {
      const float mean = launch.mean_std[c], std = launch.mean_std[3 + c];
      const float scale = 1.0f / (255.0f * std), shift = -mean / std;
      for (i64 s = first_row; s < last_row; ++s) {
        const bool made = mine && s >= row_begin && s < row_end;
        const float value = shared.total[s - first_row][c][thread] * scale + shift;
        put(out, (c * size + s) * size + my_column, made ? value : spoilt);
      }
    }
  }
}

}  // namespace psc

#endif  // GEOMAG_EDGE_PSC_BLOCK_H
