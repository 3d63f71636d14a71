//~ E0277
//~ the exchange `RingKv` does not run on the kernel `Scores`: to merge partial results, use `Flash` or another kernel with `LogSumExp`
// A kernel of one's own runs where results are merged if it implements `LogSumExp`.

use context_parallel::degree::Fixed;
use context_parallel::error::Result;
use context_parallel::layout::Thd;
use context_parallel::ops::Ops;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::kernel::{Kernel, TileOperands, Unfused};
use context_parallel::strategy::{Ring, Row};
use context_parallel::tensor::{AccMatrix, Device, ElemMatrix};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Scores;

impl Kernel for Scores {
    const NAME: &'static str = "scores";
    type Saved<D: Device> = <Unfused as Kernel>::Saved<D>;

    fn forward<D: Ops>(
        device: &D,
        tile: TileOperands<'_, D>,
        out: &mut AccMatrix<D>,
        lse: &mut AccMatrix<D>,
    ) -> Self::Saved<D> {
        Unfused::forward(device, tile, out, lse)
    }

    fn backward<D: Ops>(
        device: &D,
        tile: TileOperands<'_, D>,
        saved: &Self::Saved<D>,
        out: &AccMatrix<D>,
        lse: &AccMatrix<D>,
        delta: &AccMatrix<D>,
        dout: &ElemMatrix<D>,
        dq: &mut AccMatrix<D>,
        dkv: &mut AccMatrix<D>,
    ) {
        Unfused::backward(device, tile, saved, out, lse, delta, dout, dq, dkv);
    }

    fn merge<D: Ops>(
        device: &D,
        shape: &AttentionShape,
        out: &mut AccMatrix<D>,
        lse: &mut AccMatrix<D>,
        part: (&AccMatrix<D>, &AccMatrix<D>),
    ) -> Result<()> {
        Unfused::merge(device, shape, out, lse, part)
    }
}

impl Row<Thd, Scores> for Ring<Fixed<4>> {}

fn main() {}
