//! The table itself: from each line come the impls that the compiler checks, and the types that a name stands for.

use crate::degree::{Degree, Runtime};
use crate::error::Result;
use crate::kernel::{Flash, Kernel, KernelOn, Unfused};
use crate::layout::{Bshd, Layout, Sbhd, Thd};
use crate::ops::Ops;
use crate::order::{Contiguous, Striped, TokenOrder, Zigzag};
use crate::strategy::select::choice::Choice;
use crate::strategy::{AllGather, CpStrategy, Dynamic, Magi, Ring, RingUlysses, Row, Single, Supports, Ulysses};

/// A strategy's part of the table as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// Strategy.
    pub strategy: &'static str,
    /// Token orders that the strategy can have, the default first.
    pub orders: &'static [&'static str],
    /// Layouts and kernels that it works with.
    pub works: &'static [(&'static str, &'static str)],
}

/// Code that is compiled once for every supported combination and run for one.
pub trait Visitor {
    /// What it gives.
    type Output;
    /// What kernels run on.
    type Device: Ops;

    /// Runs with the chosen types.
    fn visit<H, L, K>(self, strategy: H) -> Result<Self::Output>
    where
        H: Supports<L, K>,
        L: Layout,
        K: KernelOn<Self::Device>;
}

macro_rules! support_table {
    ($(impl $generics:tt $strategy:ty, $name:expr, orders $orders:tt, works $works:tt;)+) => {
        $(support_table!(@rows $generics $strategy, $works);)+

        /// Every supported combination.
        pub const TABLE: &[Line] = &[$(Line {
            strategy: $name,
            orders: support_table!(@names $orders),
            works: support_table!(@cells $works),
        }),+];

        /// Runs `visitor` with the types that a choice with canonical names has; nothing if the table has no such line.
        pub(super) fn visit<V: Visitor>(choice: &Choice, visitor: V) -> Option<Result<V::Output>> {
            $(if choice.strategy == $name {
                support_table!(@select choice, visitor, $orders, $works);
            })+
            None
        }
    };
    (@rows $generics:tt $strategy:ty, [$($work:tt),+]) => {
        $(support_table!(@row $generics $strategy, $work);)+
    };
    (@row [$($generics:tt)*] $strategy:ty, ($layout:ident, $kernel:ident)) => {
        impl<$($generics)*> Row<$layout, $kernel> for $strategy {}
    };
    (@names [$($order:literal => $make:expr),+]) => { &[$($order),+] };
    (@cells [$(($layout:ident, $kernel:ident)),+]) => { &[$(($layout::NAME, $kernel::NAME)),+] };
    (@select $choice:ident, $visitor:ident, $orders:tt, [$(($layout:ident, $kernel:ident)),+]) => {
        $(if $choice.layout == $layout::NAME && $choice.kernel == $kernel::NAME {
            support_table!(@order $choice, $visitor, $orders, $layout, $kernel);
        })+
    };
    (@order $choice:ident, $visitor:ident, [$($order:literal => $make:expr),+], $layout:ident, $kernel:ident) => {
        match $choice.order.as_str() {
            $($order => return Some($visitor.visit::<_, $layout, $kernel>(($make)($choice))),)+
            _ => {}
        }
    };
}

/// The degree of a choice.
fn degree(choice: &Choice) -> Runtime {
    Runtime(choice.degree)
}

/// A ring of groups, as a choice says.
fn ring_ulysses<O: TokenOrder>(choice: &Choice) -> RingUlysses<Runtime, Runtime, O> {
    let grid = choice.ring_ulysses();
    RingUlysses::new(Runtime(grid.outer), Runtime(grid.inner)).with_inner_adjacent(grid.inner_adjacent)
}

/// A solved placement, as a choice says.
fn magi(choice: &Choice) -> Magi {
    let magi = Magi::new(degree(choice)).with_stages(choice.stage_count());
    match choice.effort {
        Some(moves) => magi.with_effort(moves),
        None => magi,
    }
}

support_table! {
    impl[] Single, Single::NAME,
        orders ["natural" => |_| Single],
        works [(Bshd, Flash), (Sbhd, Flash), (Thd, Flash), (Bshd, Unfused), (Sbhd, Unfused)];
    impl[N: Degree, O: TokenOrder] Ring<N, O>, <Ring>::NAME,
        orders [
            "zigzag" => |choice| Ring::<_, Zigzag>::new(degree(choice)),
            "striped" => |choice| Ring::<_, Striped>::new(degree(choice)),
            "contiguous" => |choice| Ring::<_, Contiguous>::new(degree(choice))
        ],
        works [(Bshd, Flash), (Sbhd, Flash), (Thd, Flash)];
    impl[N: Degree, O: TokenOrder] AllGather<N, O>, <AllGather>::NAME,
        orders [
            "zigzag" => |choice| AllGather::<_, Zigzag>::new(degree(choice)),
            "striped" => |choice| AllGather::<_, Striped>::new(degree(choice)),
            "contiguous" => |choice| AllGather::<_, Contiguous>::new(degree(choice))
        ],
        works [(Bshd, Flash), (Sbhd, Flash), (Thd, Flash), (Bshd, Unfused), (Sbhd, Unfused)];
    impl[N: Degree, O: TokenOrder] Ulysses<N, O>, <Ulysses>::NAME,
        orders [
            "zigzag" => |choice| Ulysses::<_, Zigzag>::new(degree(choice)),
            "striped" => |choice| Ulysses::<_, Striped>::new(degree(choice)),
            "contiguous" => |choice| Ulysses::<_, Contiguous>::new(degree(choice))
        ],
        works [(Bshd, Flash), (Sbhd, Flash), (Thd, Flash), (Bshd, Unfused), (Sbhd, Unfused)];
    impl[M: Degree, N: Degree, O: TokenOrder] RingUlysses<M, N, O>, <RingUlysses>::NAME,
        orders [
            "zigzag" => ring_ulysses::<Zigzag>,
            "striped" => ring_ulysses::<Striped>,
            "contiguous" => ring_ulysses::<Contiguous>
        ],
        works [(Bshd, Flash), (Sbhd, Flash), (Thd, Flash)];
    impl[N: Degree] Magi<N>, <Magi>::NAME,
        orders ["solved" => magi],
        works [(Thd, Flash)];
    impl[N: Degree] Dynamic<N>, <Dynamic>::NAME,
        orders ["grouped" => |choice| Dynamic::new(degree(choice)).with_stages(choice.stage_count())],
        works [(Thd, Flash)];
}
