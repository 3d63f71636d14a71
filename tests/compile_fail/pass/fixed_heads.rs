// Fixed and run-time degrees with fixed and run-time head counts: what the compiler does not see, or what divides.

use context_parallel::degree::Fixed;
use context_parallel::layout::{Bshd, Layout, Thd};
use context_parallel::model::{Architecture, Config, FixedHeads, FromConfig, GptModel, HeadsFit};
use context_parallel::strategy::{AllGather, CpStrategy, Dynamic, Magi, Ring, RingUlysses, Single, Supports, Ulysses};
use context_parallel::kernel::{Flash, KernelOn, Unfused};
use context_parallel::tensor::Cpu;

/// More heads than the compiler divides.
#[derive(Clone, Copy, Debug)]
struct Wide;

impl Architecture for Wide {
    const HEADS: Option<(usize, usize)> = Some((1536, 3));
}

impl HeadsFit<Ring<Fixed<5>>> for Wide {}

fn model<H: Supports<L, K>, L: Layout, K: KernelOn<Cpu>, A: Architecture + HeadsFit<H>>(config: &Config) {
    let _ = GptModel::<H, L, K, Cpu, A>::new(Cpu::default(), config, 0);
}

/// Code for any strategy needs no more than it did where the head counts are of run time.
fn of_run_time<H: Supports<L, K>, L: Layout, K: KernelOn<Cpu>>(config: &Config) {
    model::<H, L, K, FromConfig>(config);
}

fn any_number<H: CpStrategy + Supports<Thd, Flash>>()
where
    FixedHeads<7, 7>: HeadsFit<H>,
    FixedHeads<1536, 3>: HeadsFit<H>,
{
}

fn models(config: &Config) {
    model::<Ulysses<Fixed<4>>, Bshd, Unfused, FixedHeads<8, 2>>(config);
    model::<Ulysses<Fixed<8>>, Thd, Flash, FixedHeads<8, 1>>(config);
    model::<Ulysses, Thd, Flash, FixedHeads<7, 7>>(config);
    model::<Ulysses<Fixed<3>>, Thd, Flash, FromConfig>(config);
    model::<RingUlysses<Fixed<3>, Fixed<4>>, Thd, Flash, FixedHeads<8, 4>>(config);
    model::<RingUlysses, Thd, Flash, FixedHeads<7, 7>>(config);
    model::<Ring<Fixed<5>>, Thd, Flash, Wide>(config);
    of_run_time::<Ulysses<Fixed<3>>, Bshd, Flash>(config);
    any_number::<Single>();
    any_number::<Ring<Fixed<4>>>();
    any_number::<AllGather<Fixed<4>>>();
    any_number::<Magi<Fixed<4>>>();
    any_number::<Dynamic<Fixed<4>>>();
}

fn main() {}
