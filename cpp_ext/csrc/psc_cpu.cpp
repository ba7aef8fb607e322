// PscCrop on the CPU: a plain C ABI, no dependency, one binary for every instruction set.
//
// A view is made row by row: input rows are summed down into one row of floats (all lanes busy,
// the only loop that touches the image), and each finished row is summed across into S pixels.
// Rows are read once; scratch is bounded and does not grow with the image. Every output value is
// computed by the same operations in the same order however the work is split among threads.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "psc_core.h"
#include "psc_cpu_simd.h"

using psc::Axis;
using psc::half_bits;
using psc::i64;
using psc::Taps;
using psc::u16;
using psc::u8;

namespace {

const int LINE_ROWS = 4;             // rows from which integer sums pay
const i64 STRIP_PIXELS = 16384;      // input columns in scratch at a time
const i64 STRIP_OUTPUTS = 1024;      // output columns in scratch at a time
const i64 STAGE_PIXELS = 512;        // input columns gathered at a time from odd layouts
const double WORK_PER_THREAD = 4e6;  // in units of work_of, about 0.2 ms
const int CHUNK_MAX = 64;            // most bytes that one step of the widest loop reads

// The image as its owner holds it. Strides are in bytes and may be negative.
struct Image {
  const u8* data;
  i64 height, width;
  i64 row, pixel, channel;

  // RGB, BGR, RGBA and BGRA in place; anything else is gathered a few rows at a time.
  bool interleaved() const {
    return (pixel == 3 || pixel == 4) && (channel == 1 || channel == -1);
  }
  int pitch() const { return interleaved() ? (int)pixel : 3; }
  int lane_of(int c) const { return interleaved() && channel == -1 ? 2 - c : c; }
  const u8* first_byte(i64 y, i64 x) const {
    return data + y * row + x * pixel + (interleaved() && channel == -1 ? -2 : 0);
  }
};

// Everything about one window that its tasks share.
struct Window {
  Axis x, y;
  i64 column_begin, column_end;  // output columns whose centre is in the image
  i64 row_begin, row_end;        // output rows likewise
  i64 strip_outputs;             // output columns a strip; 0: one output's taps exceed scratch
  i64 strips, bands;             // how the window is cut into tasks
  i64 first_task;
};

struct Job {
  const Loops* loops;
  Image image;
  i64 size;
  float* out;        // one of the two is null
  u16* out_half;
  float scale[3], shift[3];  // by output channel
  Normal normal;             // the same, by lane of a summed pixel
  std::vector<Window> windows;
  i64 n_tasks;
};

Window plan_window(const Job& job, const float* box) {
  Window w;
  w.x = psc::make_axis(box[0], box[2], job.size, job.image.width);
  w.y = psc::make_axis(box[1], box[3], job.size, job.image.height);
  w.column_begin = psc::first_at_or_beyond(w.x, job.size, 0.0);
  w.column_end = psc::first_at_or_beyond(w.x, job.size, (double)w.x.extent);
  w.row_begin = psc::first_at_or_beyond(w.y, job.size, 0.0);
  w.row_end = psc::first_at_or_beyond(w.y, job.size, (double)w.y.extent);
  w.strips = 1;
  w.strip_outputs = 0;
  const double room = (double)STRIP_PIXELS - 2.0 * w.x.radius - 4.0;
  if (room > 0.0) {
    const double fit = room / w.x.scale + 1.0;
    w.strip_outputs = fit < (double)STRIP_OUTPUTS ? (i64)fit : STRIP_OUTPUTS;
    const i64 columns = w.column_end - w.column_begin;
    if (columns > 0) w.strips = (columns + w.strip_outputs - 1) / w.strip_outputs;
  }
  return w;
}

// Bytes of the image that a window's rows hold, roughly: the unit in which work is shared out.
double work_of(const Job& job, const Window& w) {
  const double columns = (double)(w.column_end - w.column_begin);
  const double rows = (double)(w.row_end - w.row_begin);
  return rows * columns * (3.0 * w.x.scale * w.y.scale + 6.0 * w.x.scale + 12.0) +
         (double)job.size * (double)job.size;
}

// One thread's buffers, sized by constants (below 1 MiB in all).
struct Scratch {
  std::vector<float> current, next, weights, planes;
  std::vector<int> starts;
  std::vector<u8> stage;
};

void put(const Job& job, i64 window, int channel, i64 row, i64 from, i64 to, float value) {
  const i64 at = ((window * 3 + channel) * job.size + row) * job.size;
  for (i64 j = from; j < to; ++j) {
    if (job.out_half) job.out_half[at + j] = half_bits(value);
    else job.out[at + j] = value;
  }
}

// The columns of one strip: which pixels every output column reads and their weights.
struct Strip {
  i64 first, outputs;   // output columns
  i64 begin, pixels;    // input columns
  i64 taps;             // taps a column, the same for all: short ones are padded with zeros
};

Strip plan_strip(const Window& w, i64 index, int pitch, Scratch& scratch) {
  Strip strip;
  strip.first = w.column_begin + index * w.strip_outputs;
  const i64 end = strip.first + w.strip_outputs;
  strip.outputs = (end < w.column_end ? end : w.column_end) - strip.first;
  strip.begin = psc::taps_at(w.x, psc::centre(w.x, strip.first)).begin;
  const i64 stop = psc::taps_at(w.x, psc::centre(w.x, strip.first + strip.outputs - 1)).end;
  strip.pixels = stop - strip.begin;
  strip.taps = 0;
  for (i64 j = 0; j < strip.outputs; ++j) {
    const Taps taps = psc::taps_at(w.x, psc::centre(w.x, strip.first + j));
    if (taps.end - taps.begin > strip.taps) strip.taps = taps.end - taps.begin;
  }
  const i64 padded = (strip.outputs + 3) / 4 * 4;
  scratch.starts.assign((size_t)padded, 0);
  scratch.weights.assign((size_t)(padded * strip.taps), 0.0f);
  scratch.planes.resize((size_t)(3 * padded));
  for (i64 j = 0; j < strip.outputs; ++j) {
    const Taps taps = psc::taps_at(w.x, psc::centre(w.x, strip.first + j));
    // Moved left where the padding would stick out on the right.
    i64 start = taps.begin;
    if (start + strip.taps > stop) start = stop - strip.taps;
    scratch.starts[(size_t)j] = (int)((start - strip.begin) * pitch);
    float* weights = scratch.weights.data() + (j / 4) * 4 * strip.taps + j % 4;
    for (i64 k = 0; k < taps.end - taps.begin; ++k) {
      weights[4 * (k + taps.begin - start)] = psc::weight(taps, k);
    }
  }
  return strip;
}

// Adds a block of input rows, columns [begin, begin + pixels), to the row buffers.
void add_rows(const Job& job, Block& block, i64 y, i64 begin, i64 pixels, bool pair,
              Scratch& scratch) {
  const Image& image = job.image;
  const int chunk = 4 * job.loops->lanes;
  const auto accumulate = !pair                        ? job.loops->accumulate_one
                          : block.n_rows < LINE_ROWS ? job.loops->accumulate_pair
                                                     : job.loops->accumulate_lines;
  float* current = scratch.current.data();
  float* next = scratch.next.data();
  u8* stage = scratch.stage.data();
  const i64 stage_pitch = STAGE_PIXELS * 3 + CHUNK_MAX;
  if (image.interleaved()) {
    // Only bytes of the window are read: the image may end on the last byte of a mapped file.
    const i64 bytes = image.pixel * (pixels - 1) + 3;
    const i64 whole = bytes / chunk;
    block.ahead = image.row * block.n_rows;
    for (int r = 0; r < block.n_rows; ++r) block.rows[r] = image.first_byte(y + r, begin);
    accumulate(block, whole, current, next);
    const i64 done = whole * chunk;
    if (done < bytes) {
      for (int r = 0; r < block.n_rows; ++r) {
        u8* to = stage + r * stage_pitch;
        memset(to, 0, CHUNK_MAX);
        memcpy(to, block.rows[r] + done, (size_t)(bytes - done));
        block.rows[r] = to;
      }
      block.ahead = 0;
      accumulate(block, 1, current + done, next + done);
    }
    return;
  }
  block.ahead = 0;
  for (i64 x = 0; x < pixels; x += STAGE_PIXELS) {
    const i64 count = pixels - x < STAGE_PIXELS ? pixels - x : STAGE_PIXELS;
    for (int r = 0; r < block.n_rows; ++r) {
      u8* to = stage + r * stage_pitch;
      const u8* from = image.first_byte(y + r, begin + x);
      for (i64 p = 0; p < count; ++p) {
        to[3 * p] = from[p * image.pixel];
        to[3 * p + 1] = from[p * image.pixel + image.channel];
        to[3 * p + 2] = from[p * image.pixel + 2 * image.channel];
      }
      memset(to + 3 * count, 0, CHUNK_MAX);
      block.rows[r] = to;
    }
    accumulate(block, (3 * count + chunk - 1) / chunk, current + 3 * x, next + 3 * x);
  }
}

// Sums the accumulated row across, normalises, and writes one output row of all three channels.
void finish_row(const Job& job, i64 index, i64 s, const Strip& strip, Scratch& scratch) {
  const auto reduce = job.image.pitch() == 3 ? job.loops->reduce_pitch_3 : job.loops->reduce_pitch_4;
  const i64 whole = strip.outputs / 4 * 4, padded = (strip.outputs + 3) / 4 * 4;
  const i64 plane = job.size * job.size;
  const i64 at = (index * 3 * job.size + s) * job.size + strip.first;
  const i64 direct = job.out ? whole : 0;  // outputs that need no stop in scratch
  float* lanes[3];
  if (direct > 0) {
    for (int c = 0; c < 3; ++c) lanes[job.image.lane_of(c)] = job.out + at + c * plane;
    reduce(scratch.current.data(), scratch.starts.data(), scratch.weights.data(), direct,
           strip.taps, job.normal, lanes[0], lanes[1], lanes[2]);
  }
  if (direct == strip.outputs) return;
  for (int c = 0; c < 3; ++c) lanes[job.image.lane_of(c)] = scratch.planes.data() + c * padded;
  reduce(scratch.current.data(), scratch.starts.data() + direct,
         scratch.weights.data() + direct * strip.taps, padded - direct, strip.taps, job.normal,
         lanes[0], lanes[1], lanes[2]);
  for (int c = 0; c < 3; ++c) {
    const float* from = scratch.planes.data() + c * padded;
    const i64 count = strip.outputs - direct;
    if (job.out) memcpy(job.out + at + c * plane + direct, from, (size_t)count * sizeof(float));
    else job.loops->to_half(from, count, job.out_half + at + c * plane);
  }
}

// The line of the weights of rows first, first + 1, ..., all on one side of the taps' centre.
Line line_of(const Taps& taps, i64 first, bool rising) {
  const float step = (rising ? taps.slope : -taps.slope) * taps.gain;
  const float distance = rising ? taps.offset - (float)first : (float)first - taps.offset;
  return Line{(1.0f - distance * taps.slope) * taps.gain - step, step};
}

// Output rows [from, to) of one strip.
void run_strip(const Job& job, i64 index, const Window& w, i64 strip_index, i64 from, i64 to,
               Scratch& scratch) {
  const Image& image = job.image;
  const Strip strip = plan_strip(w, strip_index, image.pitch(), scratch);
  const size_t row_floats = (size_t)(strip.pixels * image.pitch() + 2 * CHUNK_MAX);
  if (scratch.current.size() < row_floats) scratch.current.resize(row_floats);
  if (scratch.next.size() < row_floats) scratch.next.resize(row_floats);

  const bool pair = w.y.scale >= 1.0;
  // A band starts one row early for the sums that its first row shares with the row before it.
  for (i64 s = pair && from > w.row_begin ? from - 1 : from; s < to; ++s) {
    const Taps taps = psc::taps_at(w.y, psc::centre(w.y, s));
    Taps after = taps;
    if (s + 1 < w.row_end) after = psc::taps_at(w.y, psc::centre(w.y, s + 1));
    else after.gain = 0.0f;
    i64 y = taps.begin;
    bool fresh_current = !pair || s == w.row_begin || s < from;
    if (pair && s > w.row_begin) y = psc::taps_at(w.y, psc::centre(w.y, s - 1)).end;
    bool fresh_next = true;
    while (y < taps.end) {
      Block block;
      // A block stays on one side of the current row's centre: there its weights are on a line.
      const bool rising = (float)(y - taps.begin) < taps.offset;
      i64 stop = taps.end;
      if (pair && rising) stop = taps.begin + (i64)taps.offset + 1;
      if (stop > taps.end) stop = taps.end;
      block.n_rows = (int)(stop - y < BLOCK_ROWS ? stop - y : BLOCK_ROWS);
      block.fresh_current = fresh_current;
      block.fresh_next = fresh_next;
      for (int r = 0; r < block.n_rows; ++r) {
        block.now[r] = psc::weight(taps, y + r - taps.begin);
        block.later[r] = psc::weight(after, y + r - after.begin);
      }
      block.now_line = line_of(taps, y - taps.begin, rising);
      // Rows above the current centre are beyond the next row's reach.
      block.later_line = rising ? Line{0.0f, 0.0f} : line_of(after, y - after.begin, true);
      add_rows(job, block, y, strip.begin, strip.pixels, pair, scratch);
      fresh_current = fresh_next = false;
      y += block.n_rows;
    }
    if (pair && fresh_next) scratch.next.assign(scratch.next.size(), 0.0f);
    if (s >= from) {
      finish_row(job, index, s, strip, scratch);
    }
    scratch.current.swap(scratch.next);
  }
}

// Filters wider than the scratch (a scale of thousands of pixels): no buffers, pixel by pixel.
void run_wide(const Job& job, i64 index, const Window& w, i64 from, i64 to) {
  const Image& image = job.image;
  for (i64 s = from; s < to; ++s) {
    const Taps down = psc::taps_at(w.y, psc::centre(w.y, s));
    for (i64 j = w.column_begin; j < w.column_end; ++j) {
      const Taps across = psc::taps_at(w.x, psc::centre(w.x, j));
      double sum[3] = {0.0, 0.0, 0.0};
      for (i64 y = down.begin; y < down.end; ++y) {
        double row[3] = {0.0, 0.0, 0.0};
        for (i64 x = across.begin; x < across.end; ++x) {
          const float weight = psc::weight(across, x - across.begin);
          const u8* at = image.data + y * image.row + x * image.pixel;
          for (int c = 0; c < 3; ++c) row[c] += (double)(weight * (float)at[c * image.channel]);
        }
        const double weight = (double)psc::weight(down, y - down.begin);
        for (int c = 0; c < 3; ++c) sum[c] += weight * row[c];
      }
      for (int c = 0; c < 3; ++c) {
        put(job, index, c, s, j, j + 1, (float)sum[c] * job.scale[c] + job.shift[c]);
      }
    }
  }
}

void run_task(const Job& job, i64 task, Scratch& scratch) {
  size_t low = 0, high = job.windows.size();  // the window that holds this task
  while (high - low > 1) {
    const size_t middle = (low + high) / 2;
    if (job.windows[middle].first_task <= task) low = middle; else high = middle;
  }
  const i64 index = (i64)low;
  const Window& w = job.windows[low];
  const i64 strip = (task - w.first_task) / w.bands;
  const i64 band = (task - w.first_task) % w.bands;
  const i64 first = job.size * band / w.bands, last = job.size * (band + 1) / w.bands;
  i64 from = first > w.row_begin ? first : w.row_begin;
  i64 to = last < w.row_end ? last : w.row_end;
  if (w.column_begin >= w.column_end || to < from) from = to = last;  // nothing of it in the image
  if (strip == 0) {
    for (int c = 0; c < 3; ++c) {
      for (i64 s = first; s < last; ++s) {
        const bool blank = s < from || s >= to;
        put(job, index, c, s, 0, blank ? job.size : w.column_begin, 0.0f);
        if (!blank) put(job, index, c, s, w.column_end, job.size, 0.0f);
      }
    }
  }
  if (from >= to) return;
  if (w.strip_outputs == 0) run_wide(job, index, w, from, to);
  else run_strip(job, index, w, strip, from, to, scratch);
}

void run_tasks(const Job& job, std::atomic<i64>& next_task, std::atomic<bool>& failed) {
  try {
    Scratch scratch;
    scratch.stage.resize((size_t)(BLOCK_ROWS * (STAGE_PIXELS * 3 + CHUNK_MAX)));
    for (i64 task; (task = next_task.fetch_add(1)) < job.n_tasks;) run_task(job, task, scratch);
  } catch (const std::bad_alloc&) {
    failed = true;
  }
}

}  // namespace

extern "C" {

// Views of K windows: out[K, 3, size, size], float or (half != 0) float16.
//
// image: uint8 samples at image + y * row + x * pixel + c * channel, strides in bytes.
// boxes: f32[K, 4] x0, y0, x1, y1 in pixels, finite, x0 < x1 and y0 < y1 (the caller checks).
// mean_std: f32[2, 3] in 0..1 units. simd: null for the best, or "baseline", "avx2", "avx512".
// Returns 0, or 1: bad argument, 2: out of memory, 3: this CPU lacks the instruction set named.
int geomag_psc_crop_cpu(const u8* image, i64 height, i64 width, i64 row, i64 pixel, i64 channel,
                        const float* boxes, i64 n_boxes, const float* mean_std, i64 size, void* out,
                        int half, int threads, const char* simd) {
  if (height < 1 || width < 1 || size < 1 || n_boxes < 0 || threads < 1) return 1;
  try {
    Job job;
    job.loops = loops_named(simd);
    if (job.loops == nullptr) return 3;
    job.image = Image{image, height, width, row, pixel, channel};
    job.size = size;
    job.out = half ? nullptr : (float*)out;
    job.out_half = half ? (u16*)out : nullptr;
    for (int c = 0; c < 3; ++c) {
      job.scale[c] = (float)(1.0 / (255.0 * (double)mean_std[3 + c]));
      job.shift[c] = (float)(-(double)mean_std[c] / (double)mean_std[3 + c]);
      job.normal.scale[job.image.lane_of(c)] = job.scale[c];
      job.normal.shift[job.image.lane_of(c)] = job.shift[c];
    }
    job.normal.scale[3] = job.normal.shift[3] = 0.0f;
    double work = 0.0;
    for (i64 k = 0; k < n_boxes; ++k) {
      job.windows.push_back(plan_window(job, boxes + 4 * k));
      work += work_of(job, job.windows.back());
    }
    // Starting a thread costs as much as a small view: none is started for less work than it takes.
    const double worth = 1.0 + work / WORK_PER_THREAD;
    if (worth < (double)threads) threads = (int)worth;
    // Several tasks a thread even out their ends; one thread needs no cuts at all.
    const double share = work / (threads > 1 ? 4.0 * threads : 1.0);
    job.n_tasks = 0;
    for (Window& w : job.windows) {
      const i64 most = size < 8 ? 1 : size / 8;
      i64 bands = threads > 1 ? (i64)(work_of(job, w) / share / (double)w.strips + 0.5) : 1;
      w.bands = bands < 1 ? 1 : (bands > most ? most : bands);
      w.first_task = job.n_tasks;
      job.n_tasks += w.strips * w.bands;
    }

    std::atomic<i64> next_task(0);
    std::atomic<bool> failed(false);
    std::vector<std::thread> helpers;
    const i64 useful = job.n_tasks < (i64)threads ? job.n_tasks : (i64)threads;
    helpers.reserve((size_t)(useful > 0 ? useful : 1));
    for (i64 t = 1; t < useful; ++t) {
      try {
        helpers.emplace_back([&] { run_tasks(job, next_task, failed); });
      } catch (const std::system_error&) {
        break;  // no more threads to be had: those that run do all of it
      }
    }
    if (job.n_tasks > 0) run_tasks(job, next_task, failed);
    for (std::thread& helper : helpers) helper.join();
    return failed ? 2 : 0;
  } catch (const std::bad_alloc&) {
    return 2;
  }
}

// The instruction set that a null `simd` chooses here.
const char* geomag_psc_simd(void) {
  const int lanes = loops_of_this_cpu().lanes;
  return lanes == 16 ? "avx512" : (lanes == 8 ? "avx2" : "baseline");
}

// Reads every byte of a window and keeps nothing: the roofline that the benchmark compares with.
// Same threads and same memory as a crop, no arithmetic worth the name. `rows_at_once` rows are
// read side by side, each fetched `ahead` bytes early (0: left to the processor). The result only
// keeps the compiler from dropping the loads.
unsigned long long geomag_psc_read(const u8* first, i64 rows, i64 bytes, i64 row, int threads,
                                   int rows_at_once, i64 ahead) {
  std::atomic<unsigned long long> total(0);
  const auto read_band = [&](i64 from, i64 to) {
    unsigned long long folded[8] = {};
    for (i64 y = from; y < to; y += rows_at_once) {
      const i64 side_by_side = to - y < rows_at_once ? to - y : rows_at_once;
      for (i64 x = 0; x + 64 <= bytes; x += 64) {
        for (i64 r = 0; r < side_by_side; ++r) {
          const u8* at = first + (y + r) * row + x;
          if (ahead) __builtin_prefetch(at + ahead);
          unsigned long long words[8];
          memcpy(words, at, 64);
          for (int i = 0; i < 8; ++i) folded[i] ^= words[i];
        }
      }
    }
    for (int i = 0; i < 8; ++i) total ^= folded[i];
  };
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) {
    helpers.emplace_back(read_band, rows * t / threads, rows * (t + 1) / threads);
  }
  read_band(0, rows / (threads > 0 ? threads : 1));
  for (std::thread& helper : helpers) helper.join();
  return total;
}

}  // extern "C"
