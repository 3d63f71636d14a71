//~ E0277
//~ the exchange `RingKv` does not run on the kernel `Scores`: to merge partial results, use `Flash` or another kernel with `LogSumExp`
// A kernel of one's own runs where results are merged if it implements `LogSumExp`.

use context_parallel::degree::Fixed;
use context_parallel::error::Result;
use context_parallel::kernel::{Kernel, KernelOn, TileGradients, TileOperands, Unfused};
use context_parallel::layout::Thd;
use context_parallel::ops::Ops;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::strategy::{Ring, Row};
use context_parallel::tensor::{AccBuffer, AccMut, AccRef};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Scores;

impl Kernel for Scores {
    const NAME: &'static str = "scores";
}

impl<D: Ops> KernelOn<D> for Scores {
    type Saved = AccBuffer<D>;

    fn forward(device: &D, tile: TileOperands<'_, D>, out: AccMut<'_, D>, lse: AccMut<'_, D>) -> Self::Saved {
        Unfused::forward(device, tile, out, lse)
    }

    fn backward(device: &D, tile: TileOperands<'_, D>, saved: &Self::Saved, gradients: TileGradients<'_, D>) {
        Unfused::backward(device, tile, saved, gradients);
    }

    fn merge(
        device: &D,
        shape: &AttentionShape,
        out: AccMut<'_, D>,
        lse: AccMut<'_, D>,
        part: (AccRef<'_, D>, AccRef<'_, D>),
    ) -> Result<()> {
        Unfused::merge(device, shape, out, lse, part)
    }
}

impl Row<Thd, Scores> for Ring<Fixed<4>> {}

fn main() {}
