"""Device memory, one stream, CUDA graphs and arrays, for the engines that run on an NVIDIA GPU.

`driver` is the little that is asked of CUDA, `device` what the engines ask of a device; everything
above `driver` is tested on machines without a GPU, with a stand-in that runs late on purpose.
"""
