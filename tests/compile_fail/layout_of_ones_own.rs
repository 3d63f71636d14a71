//~ E0277
//~ `Hbsd` is not a layout: use `Bshd`, `Sbhd` or `Thd`
// Layouts are a closed set: every kernel knows all of them.

use context_parallel::order::Full;

struct Hbsd;

fn layer(_input: &Full<Hbsd, f32>) {}

fn main() {}
