// Operands whose rows start anywhere.

@group(0) @binding(0) var<storage, read_write> c: array<f32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;

fn a_one(i: u32) -> f32 { return a[i]; }
fn b_one(i: u32) -> f32 { return b[i]; }
fn c_one(i: u32) -> f32 { return c[i]; }
fn a_four(i: u32) -> vec4<f32> { return vec4<f32>(a[i], a[i + 1u], a[i + 2u], a[i + 3u]); }
fn b_four(i: u32) -> vec4<f32> { return vec4<f32>(b[i], b[i + 1u], b[i + 2u], b[i + 3u]); }
fn c_four(i: u32) -> vec4<f32> { return vec4<f32>(c[i], c[i + 1u], c[i + 2u], c[i + 3u]); }
fn c_set(i: u32, v: f32) { c[i] = v; }
fn c_set_four(i: u32, v: vec4<f32>) {
    c[i] = v.x;
    c[i + 1u] = v.y;
    c[i + 2u] = v.z;
    c[i + 3u] = v.w;
}

