// PscCrop on CUDA: the kernels' entry points. The body is psc_block.h.
//
// One launch makes every view: a block a tile, windows side by side along the grid's x axis.
// Compiled by nvcc into a fat binary or by NVRTC at first use; it includes nothing from CUDA's own
// headers, so both work without them.
#include "psc_block.h"

namespace {

struct CudaTeam {
  psc::i64 column_tiles;
  __device__ int thread() const { return (int)threadIdx.x; }
  __device__ psc::i64 block_x() const { return blockIdx.x % column_tiles; }
  __device__ psc::i64 block_y() const { return blockIdx.y; }
  __device__ psc::i64 block_z() const { return blockIdx.x / column_tiles; }
  __device__ void barrier() const { __syncthreads(); }
};

template <class Out>
__device__ __forceinline__ void crop(const psc::Launch& launch) {
  __shared__ psc::Shared shared;
  const CudaTeam team = {(launch.size + launch.tile_columns - 1) / launch.tile_columns};
  psc::crop_tile<CudaTeam, Out>(launch, team, shared);
}

}  // namespace

// grid: (K * ceil(size / tile_columns), ceil(size / TILE_ROWS)), block: BLOCK_THREADS.
#define PSC_KERNEL(name, Out)                                                                   \
  extern "C" __global__ void __launch_bounds__(psc::BLOCK_THREADS) name(                        \
      const psc::u8* image, psc::i64 height, psc::i64 width, psc::i64 row, psc::i64 pixel,      \
      psc::i64 channel, const float* boxes, const float* mean_std, psc::i64 size,               \
      psc::i64 tile_columns, Out* out) {                                                        \
    const psc::Launch launch = {image, height,   width, row,          pixel, channel,           \
                                boxes, mean_std, size,  tile_columns, out};                     \
    crop<Out>(launch);                                                                          \
  }

PSC_KERNEL(geomag_psc_crop_f32, float)
PSC_KERNEL(geomag_psc_crop_f16, psc::u16)
