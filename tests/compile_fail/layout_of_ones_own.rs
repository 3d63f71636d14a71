//~ E0277
//~ the trait bound `Hbsd: Sealed` is not satisfied
// Layouts are a closed set: every kernel knows all of them.

use context_parallel::layout::{Dense, Layout};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hbsd;

impl Layout for Hbsd {
    type Batch = Dense;
    const NAME: &'static str = "hbsd";
    const TOKEN_MAJOR: bool = true;

    fn row(_sequences: usize, _tokens: usize, token: usize) -> usize {
        token
    }
}

fn main() {}
