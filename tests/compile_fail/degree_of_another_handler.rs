//~ E0308
//~ mismatched types
//~ label: expected `4`, found `2`
// A degree that is known at compile time is part of the strategy's type.

use context_parallel::comm::threads::ThreadComm;
use context_parallel::degree::Fixed;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Thd;
use context_parallel::strategy::Ring;
use context_parallel::tensor::Cpu;

fn start(comm: ThreadComm) {
    let _ = CpHandler::<Ring<Fixed<4>>, Thd>::new(Ring::<Fixed<2>>::default(), Cpu::default(), comm);
}

fn main() {}
