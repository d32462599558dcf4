// Vectors of floats for whatever this is compiled for: AVX-512, AVX2, or what the compiler makes of
// vectors of four.

#pragma once

#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace specbranch {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

template <typename Vector, typename Element>
inline Vector load(const Element* from) {
  Vector found;
  std::memcpy(&found, from, sizeof(Vector));
  return found;
}

inline void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof(vector)); }

inline Floats all(float value) {
#if defined(__AVX512F__)
  return (Floats)_mm512_set1_ps(value);
#elif defined(__AVX2__)
  return (Floats)_mm256_set1_ps(value);
#else
  return Floats{value, value, value, value};
#endif
}

// a × b + c: rounded once where the CPU has such an instruction. Left to the compiler it might be so
// in one function and not in another.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Floats to_floats(Ints numbers) { return __builtin_convertvector(numbers, Floats); }

inline Floats load_scales(const float* from) { return load<Floats>(from); }

inline Floats load_scales(const c10::Half* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtph_ps(load<__m128i>(from));
#else
  Floats found;
  for (int lane = 0; lane < WIDTH; ++lane) found[lane] = static_cast<float>(from[lane]);
  return found;
#endif
}

inline Ints load_int8(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepi8_epi32(load<__m128i>(from));
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  Ints found;
  for (int lane = 0; lane < WIDTH; ++lane) found[lane] = static_cast<int8_t>(from[lane]);
  return found;
#endif
}

}  // namespace specbranch
