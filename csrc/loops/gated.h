// Gates of MLPs.
#pragma once

#include "activations.h"
#include "rows.h"

namespace ln_tuning {
namespace {

template <class K, class A>
void gated(const Gated& a, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = (const T*)a.gate + row * a.gate_stride;
    const T* up = (const T*)a.up + row * a.up_stride;
    T* out = (T*)a.out + row * a.size;
    each(a.size, [&](int64_t i, auto how) {
      store<K>(out + i, A::value(load<K>(gate + i, how)) * load<K>(up + i, how), how);
    });
  }
}

template <class K, class A>
void gated_backward(const GatedBackward& b, int64_t begin, int64_t end) {
  typedef typename K::Stored T;
  const Gated& a = b.forward;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = (const T*)a.gate + row * a.gate_stride;
    const T* up = (const T*)a.up + row * a.up_stride;
    const T* d_out = (const T*)b.d_out + row * a.size;
    T* d_gate = (T*)b.d_gate + row * b.d_stride;
    T* d_up = (T*)b.d_up + row * b.d_stride;
    each(a.size, [&](int64_t i, auto how) {
      const F d = load<K>(d_out + i, how);
      F slope;
      const F value = A::both(load<K>(gate + i, how), slope);
      store<K>(d_gate + i, d * load<K>(up + i, how) * slope, how);
      store<K>(d_up + i, d * value, how);
    });
  }
}

template <class Body>
INLINE void with_activation(Activation activation, Body body) {
  switch (activation) {
    case Activation::gelu: return body(Gelu{});
    case Activation::gelu_tanh: return body(GeluTanh{});
    case Activation::quick_gelu: return body(QuickGelu{});
    case Activation::relu: return body(Relu{});
    case Activation::silu: return body(Silu{});
  }
}

void any_gated(const Gated& a, int64_t begin, int64_t end) {
  with_kind(a.kind, [&](auto kind) {
    with_activation(a.activation, [&](auto activation) {
      gated<decltype(kind), decltype(activation)>(a, begin, end);
    });
  });
}

void any_gated_backward(const GatedBackward& a, int64_t begin, int64_t end) {
  with_kind(a.forward.kind, [&](auto kind) {
    with_activation(a.forward.activation, [&](auto activation) {
      gated_backward<decltype(kind), decltype(activation)>(a, begin, end);
    });
  });
}

}  // namespace
}  // namespace ln_tuning
