// Sums and maxima over a workgroup of 256 invocations, in a fixed order. Each returns the result to every invocation.

var<workgroup> reduced: array<vec4f, 256>;

// A value below every logit. Infinities and NaN are not used: fast arithmetic may assume that there are none.
const LOWEST = -3e38;

fn sum_all(value: vec4f, index: u32) -> vec4f {
    workgroupBarrier();
    reduced[index] = value;
    for (var half = 128u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if index < half {
            reduced[index] += reduced[index + half];
        }
    }
    workgroupBarrier();
    return reduced[0];
}

fn max_all(value: vec4f, index: u32) -> vec4f {
    workgroupBarrier();
    reduced[index] = value;
    for (var half = 128u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if index < half {
            reduced[index] = max(reduced[index], reduced[index + half]);
        }
    }
    workgroupBarrier();
    return reduced[0];
}

fn sum_lanes(x: vec4f) -> f32 {
    return (x.x + x.y) + (x.z + x.w);
}

fn max_lanes(x: vec4f) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

// ln(a / b), accurate to the last bits also where a and b are nearly equal. a, b > 0.
fn log_ratio(a: f32, b: f32) -> f32 {
    // ln(a / b) = 2 artanh(x).
    let x = (a - b) / (a + b);
    if abs(x) < 0.1 {
        let y = x * x;
        return 2.0 * x * (1.0 + y * (1.0 / 3.0 + y * (1.0 / 5.0 + y * (1.0 / 7.0 + y / 9.0))));
    }
    return log(a / b);
}
