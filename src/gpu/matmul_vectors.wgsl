// Operands whose rows start at multiples of four elements.

@group(0) @binding(0) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;

fn a_one(i: u32) -> f32 { return a[i >> 2u][i & 3u]; }
fn b_one(i: u32) -> f32 { return b[i >> 2u][i & 3u]; }
fn c_one(i: u32) -> f32 { return c[i >> 2u][i & 3u]; }
fn a_four(i: u32) -> vec4<f32> { return a[i >> 2u]; }
fn b_four(i: u32) -> vec4<f32> { return b[i >> 2u]; }
fn c_four(i: u32) -> vec4<f32> { return c[i >> 2u]; }
fn c_set(i: u32, v: f32) { c[i >> 2u][i & 3u] = v; }
fn c_set_four(i: u32, v: vec4<f32>) { c[i >> 2u] = v; }

