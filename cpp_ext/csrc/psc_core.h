// PscCrop's formulas: where an output pixel looks, and how much each input pixel counts.
//
// The one source of truth for the CPU kernel, the CUDA kernel and the TensorRT plugin. It is
// Pillow's `Image.resize((S, S), BILINEAR, box=box)` along one axis: a triangle filter as wide as
// the scale (never narrower than one pixel), cut at the image's edge and renormalised. Columns and
// rows are independent, so a view needs two axes of every window and nothing else.
//
// Pixel p covers [p, p + 1); its centre is p + 0.5. Everything here is in pixels of the image.
#ifndef GEOMAG_EDGE_PSC_CORE_H
#define GEOMAG_EDGE_PSC_CORE_H

#ifdef __CUDACC__
#define PSC_FN __host__ __device__ __forceinline__
#else
#include <math.h>
#define PSC_FN inline
#endif

namespace psc {

typedef long long i64;       // offsets: 3 * H * W passes 2^31 already at 26.7k x 26.7k
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

// One axis of one window.
struct Axis {
  double low;      // where the window begins
  double scale;    // input pixels per output pixel
  double radius;   // half width of the filter: max(scale, 1)
  i64 extent;      // the image's width or height
};

// The input pixels [begin, end) that one output pixel reads. Tap k weighs
// max(0, 1 - |offset - k| * slope) * gain, and the weights of all taps sum to 1.
struct Taps {
  i64 begin;
  i64 end;
  float offset;  // the output pixel's centre, measured from the first tap's centre
  float slope;
  float gain;
};

PSC_FN Axis make_axis(float low, float high, i64 size, i64 extent) {
  Axis axis;
  // Pillow subtracts in float before it widens; a double subtraction drifts by 1e-4 px.
  const float length = high - low;
  axis.low = low;
  axis.scale = (double)length / (double)size;
  axis.radius = axis.scale > 1.0 ? axis.scale : 1.0;
  axis.extent = extent;
  return axis;
}

// Centre of output pixel i. Product and sum are rounded separately everywhere: a fused
// multiply-add could put a centre on the other side of the image's edge on one machine only.
PSC_FN double centre(const Axis& axis, i64 i) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(axis.low, __dmul_rn((double)i + 0.5, axis.scale));
#else
  const volatile double product = ((double)i + 0.5) * axis.scale;
  return axis.low + product;
#endif
}

// An output pixel whose centre is outside the image is 0.
PSC_FN bool inside(const Axis& axis, double at) { return at >= 0.0 && at < (double)axis.extent; }

// First output pixel of [0, size] whose centre is at or beyond `edge`.
PSC_FN i64 first_at_or_beyond(const Axis& axis, i64 size, double edge) {
  i64 low = 0, high = size;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (centre(axis, middle) >= edge) high = middle; else low = middle + 1;
  }
  return low;
}

// Taps of the output pixel centred at `at`, which must be inside the image.
PSC_FN Taps taps_at(const Axis& axis, double at) {
  Taps taps;
  const double from = at - axis.radius + 0.5;
  const double to = at + axis.radius + 0.5;
  taps.begin = from > 0.0 ? (i64)from : 0;
  taps.end = to < (double)axis.extent ? (i64)to : axis.extent;

  // The sum of the weights in closed form: taps left of the centre rise along a line, the others
  // fall along one.
  const double slope = 1.0 / axis.radius;
  const double offset = at - ((double)taps.begin + 0.5);
  const double count = (double)(taps.end - taps.begin);
  double left = (double)((i64)(at + 0.5) - taps.begin);
  left = left < 0.0 ? 0.0 : (left > count ? count : left);
  const double right = count - left;
  const double sum = left * (1.0 - offset * slope) + slope * left * (left - 1.0) * 0.5
                   + right * (1.0 + offset * slope) - slope * right * (left + count - 1.0) * 0.5;
  taps.offset = (float)offset;
  taps.slope = (float)slope;
  taps.gain = (float)(1.0 / sum);
  return taps;
}

PSC_FN float weight(const Taps& taps, i64 k) {
  const float rise = 1.0f - fabsf(taps.offset - (float)k) * taps.slope;
  return rise > 0.0f ? rise * taps.gain : 0.0f;
}

// Bits of the float16 nearest to x (ties to even; too large becomes infinity).
PSC_FN u16 half_bits(float x) {
  union { float f; u32 u; } bits, magic;
  bits.f = x;
  const u32 sign = (bits.u >> 16) & 0x8000u;
  bits.u &= 0x7fffffffu;
  u32 half;
  if (bits.u >= 0x7f800000u) {          // infinity or NaN
    half = bits.u > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (bits.u >= 0x477ff000u) {   // rounds past 65504
    half = 0x7c00u;
  } else if (bits.u < 0x38800000u) {    // subnormal half: let the float adder round
    magic.u = 0x3f000000u;
    bits.f += magic.f;
    half = bits.u - magic.u;
  } else {
    half = (bits.u - 0x38000000u + 0xfffu + ((bits.u >> 13) & 1u)) >> 13;
  }
  return (u16)(sign | half);
}

}  // namespace psc

#endif  // GEOMAG_EDGE_PSC_CORE_H
