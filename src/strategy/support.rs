//! The one table of what works: strategy x layout x kernel.
//!
//! From it come the trait impls that the compiler checks, the selection by name at run time, the table in the README
//! ([`markdown`]) and the list of combinations that must not compile.

use std::sync::Arc;

use crate::degree::{Degree, Grid, Runtime};
use crate::error::{Error, Result, SupportError};
use crate::layout::{Bshd, Layout, LayoutKind, Sbhd, Thd};
use crate::order::{Contiguous, Striped, TokenOrder, Zigzag};
use crate::plan::stages::{MOST_PARTS, StageCount};
use crate::strategy::{
    AllGather, CastKv, CpStrategy, DynStrategy, Dynamic, Flash, GatherKv, Kernel, KernelKind, KvExchange, LocalKv,
    LogSumExp, Magi, Ring, RingKv, RingUlysses, Single, Ulysses, Unfused, object,
};

/// A line of the table: the strategy works with layout `L` and kernel `K`.
///
/// Implement it for a strategy of your own, for each combination that it works with. A kernel that the strategy's
/// exchange does not run on ([`RunsOn`]) is refused there.
pub trait Row<L: Layout, K: Kernel>: CpStrategy<Kv: RunsOn<K>> {}

/// Exchanges that a kernel can compute: those that merge partial results need a log-sum-exp.
#[diagnostic::on_unimplemented(
    message = "the exchange `{Self}` does not run on the kernel `{K}`: to merge partial results, use `Flash` or another kernel with `LogSumExp`",
    label = "not a kernel for this exchange",
    note = "`LocalKv` and `GatherKv` merge nothing and run on every kernel",
    note = "an exchange of your own implements `RunsOn<K>` for every `K: LogSumExp`, or, if it attends all keys in one tile in natural order, for every kernel"
)]
pub trait RunsOn<K: Kernel>: KvExchange {}

impl<K: Kernel> RunsOn<K> for LocalKv {}
impl<K: Kernel> RunsOn<K> for GatherKv {}
#[diagnostic::do_not_recommend]
impl<K: LogSumExp> RunsOn<K> for RingKv {}
#[diagnostic::do_not_recommend]
impl<K: LogSumExp> RunsOn<K> for CastKv {}

/// The gate of model and attention: a strategy that works with layout `L` and kernel `K`.
///
/// It holds for every [`Row`]; do not implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not work with layout `{L}` and kernel `{K}`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`",
    label = "this combination is not in the support table",
    note = "`Magi` and `Dynamic` place the documents of packed batches, which only `Thd` has",
    note = "`Unfused` works with `Single`, `AllGather` and `Ulysses` on `Bshd` and `Sbhd`; other exchanges merge partial results, which needs a log-sum-exp",
    note = "a strategy of your own works with the layouts and kernels for which it implements `Row`"
)]
pub trait Supports<L: Layout, K: Kernel>: CpStrategy {}

#[diagnostic::do_not_recommend]
impl<H, L, K> Supports<L, K> for H
where
    H: Row<L, K>,
    L: Layout,
    K: Kernel,
{
}

/// A combination by its names, and what some strategies can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Choice {
    /// `single`, `ring` (`p2p`), `all-gather` (`all_gather`), `ulysses` (`a2a`), `ring-ulysses` (`a2a+p2p`), `magi`,
    /// `dynamic`.
    pub strategy: String,
    /// `natural` (`single` alone), `zigzag`, `striped`, `contiguous`; empty for the strategy's first.
    pub order: String,
    /// `bshd`, `sbhd`, `thd`.
    pub layout: String,
    /// `flash`, `unfused`.
    pub kernel: String,
    /// Number of ranks.
    pub degree: usize,
    /// How `ring-ulysses` groups the ranks; the most even way that exchanges up to two heads per rank if nothing is
    /// said. None for other strategies.
    pub grid: Option<Grid>,
    /// How many moves the solver of `magi` tries; its default if nothing is said. None for other strategies.
    pub effort: Option<u64>,
    /// In how many stages `magi` and `dynamic` fetch remote keys, 1 to [`MOST_PARTS`]; as many as are estimated to take
    /// the least time if nothing is said. None for other strategies.
    pub stages: Option<usize>,
}

impl Choice {
    /// The grid of `ring-ulysses`.
    fn ring_ulysses(&self) -> Grid {
        self.grid.unwrap_or_else(|| Grid::most_even(self.degree, 2 * self.degree))
    }

    /// In how many stages remote keys are fetched.
    pub fn stage_count(&self) -> StageCount {
        self.stages.map_or(StageCount::Best, StageCount::Exactly)
    }

    /// Refuses what the strategy cannot be told.
    fn check_details(&self) -> Result<()> {
        let (strategy, ranks) = (&self.strategy, self.degree);
        let refuse = |message| Err(SupportError::Numbers(message).into());
        let is = |names: &[&str]| names.contains(&strategy.as_str());
        if let Some(Grid { outer, inner, .. }) = self.grid {
            if !is(&[<RingUlysses>::NAME]) {
                return refuse(format!(
                    "a grid of {outer}x{inner} ranks for {strategy}, which has one degree: leave the grid out, or use \
                     ring-ulysses"
                ));
            }
            if outer.checked_mul(inner) != Some(ranks) {
                return refuse(format!(
                    "a grid of {outer}x{inner} for {ranks} ranks: use a grid whose product is the number of ranks"
                ));
            }
        }
        if let Some(moves) = self.effort.filter(|_| !is(&[<Magi>::NAME])) {
            return refuse(format!(
                "an effort of {moves} moves is for the solver of magi, not for {strategy}: leave --effort out"
            ));
        }
        match self.stages {
            Some(stages) if !is(&[<Magi>::NAME, <Dynamic>::NAME]) => {
                refuse(format!("{stages} stages are for magi and dynamic, not for {strategy}: leave --stages out"))
            }
            Some(stages) if !(1..=MOST_PARTS).contains(&stages) => {
                refuse(format!("--stages is {stages}: use 1 to {MOST_PARTS}"))
            }
            _ => Ok(()),
        }
    }
}

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

    /// Runs with the chosen types.
    fn visit<H, L, K>(self, strategy: H) -> Result<Self::Output>
    where
        H: Supports<L, K>,
        L: Layout,
        K: Kernel;
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

        /// Runs `visitor` with the types that `choice` names, or says what is wrong with it.
        pub fn select<V: Visitor>(choice: &Choice, visitor: V) -> Result<V::Output> {
            let choice = checked(choice)?;
            $(if choice.strategy == $name {
                support_table!(@select choice, visitor, $orders, $works);
            })+
            Err(unsupported(&choice))
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
            $($order => return $visitor.visit::<_, $layout, $kernel>(($make)(&$choice)),)+
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

/// Every combination as (strategy, layout, kernel).
pub fn combinations() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    TABLE.iter().flat_map(|line| line.works.iter().map(|(layout, kernel)| (line.strategy, *layout, *kernel)))
}

/// The names that `of` gives, in the table's order, without repetition.
fn names(of: impl Fn((&'static str, &'static str, &'static str)) -> &'static str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for combination in combinations() {
        if !names.contains(&of(combination)) {
            names.push(of(combination));
        }
    }
    names
}

/// Names of all strategies.
pub fn strategies() -> Vec<&'static str> {
    names(|(strategy, _, _)| strategy)
}

/// Names of all layouts.
pub fn layouts() -> Vec<&'static str> {
    names(|(_, layout, _)| layout)
}

/// Names of all kernels.
pub fn kernels() -> Vec<&'static str> {
    names(|(_, _, kernel)| kernel)
}

/// Names of the orders that a strategy can have, the default first; none if there is no such strategy.
pub fn orders(strategy: &str) -> &'static [&'static str] {
    TABLE.iter().find(|line| line.strategy == strategy).map_or(&[], |line| line.orders)
}

/// Whether the table has this combination.
pub fn works(strategy: &str, layout: &str, kernel: &str) -> bool {
    combinations().any(|combination| combination == (strategy, layout, kernel))
}

/// Names of all orders.
pub fn all_orders() -> Vec<&'static str> {
    let mut names = Vec::new();
    for order in TABLE.iter().flat_map(|line| line.orders) {
        if !names.contains(order) {
            names.push(*order);
        }
    }
    names
}

/// Further names of a strategy: those of other systems.
pub fn aliases(strategy: &str) -> &'static [&'static str] {
    const ALIASES: &[(&str, &[&str])] = &[
        (<Ring>::NAME, &["p2p"]),
        (<AllGather>::NAME, &["all_gather"]),
        (<Ulysses>::NAME, &["a2a"]),
        (<RingUlysses>::NAME, &["a2a+p2p", "p2p+a2a", "usp"]),
        (<Dynamic>::NAME, &["dynamic-cp", "hybrid-cp"]),
    ];
    ALIASES.iter().find(|(name, _)| *name == strategy).map_or(&[], |(_, aliases)| aliases)
}

fn known(what: &'static str, name: &str, known: &[&'static str]) -> Result<String> {
    let normal = name.to_ascii_lowercase().replace('_', "-");
    let alias = strategies().into_iter().find(|strategy| aliases(strategy).contains(&normal.as_str()));
    let normal = alias.filter(|_| what == "strategy").unwrap_or(&normal);
    match known.contains(&normal) {
        true => Ok(normal.to_string()),
        false => Err(SupportError::Unknown { what, name: name.to_string(), known: known.join(", ") }.into()),
    }
}

/// The choice with canonical names. An empty order is the strategy's first; one that it does not have is an error.
pub fn checked(choice: &Choice) -> Result<Choice> {
    let strategy = known("strategy", &choice.strategy, &strategies())?;
    let layout = known("layout", &choice.layout, &layouts())?;
    let kernel = known("kernel", &choice.kernel, &kernels())?;
    let has = orders(&strategy);
    let order = match (choice.order.is_empty(), has) {
        (true, [first, ..]) => (*first).to_string(),
        _ => known("order", &choice.order, &all_orders())?,
    };
    if !has.contains(&order.as_str()) {
        let has = has.join(", ");
        return Err(SupportError::Numbers(format!(
            "strategy {strategy} has no order {order}: leave the order out, or choose one of {has}"
        ))
        .into());
    }
    let checked = Choice { strategy, order, layout, kernel, ..*choice };
    if !works(&checked.strategy, &checked.layout, &checked.kernel) {
        return Err(unsupported(&checked));
    }
    checked.check_details()?;
    if checked.strategy == Single::NAME && checked.degree != 1 {
        let ranks = checked.degree;
        return Err(SupportError::Numbers(format!(
            "strategy single runs on 1 rank, not on {ranks}: use --cp 1, or a strategy that splits sequences ({})",
            strategies()[1..].join(", ")
        ))
        .into());
    }
    Ok(checked)
}

/// The choice for a model with this many query heads: `ring-ulysses` gets the most even grid that suits them where none
/// was chosen.
///
/// # Errors
/// [`SupportError::Heads`] if the strategy cannot share the heads out.
pub fn fit_heads(mut choice: Choice, q_heads: usize) -> Result<Choice> {
    if choice.strategy == <RingUlysses>::NAME {
        choice.grid = choice.grid.or_else(|| Some(Grid::most_even(choice.degree, q_heads)));
    }
    chosen(&choice)?.strategy.heads_per_rank(q_heads)?;
    Ok(choice)
}

/// A combination of the table as values: what code takes that is compiled once for all of them.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The strategy with its degree and settings.
    pub strategy: Arc<dyn DynStrategy>,
    /// The layout.
    pub layout: LayoutKind,
    /// The kernel.
    pub kernel: KernelKind,
}

/// The combination that `choice` names, or what is wrong with it.
///
/// # Errors
/// Those of [`checked`].
pub fn chosen(choice: &Choice) -> Result<Chosen> {
    let (strategy, layout, name) = select(choice, Choose)?;
    let kernel = KernelKind::named(name).ok_or_else(|| unsupported(choice))?;
    Ok(Chosen { strategy, layout, kernel })
}

struct Choose;

impl Visitor for Choose {
    type Output = (Arc<dyn DynStrategy>, LayoutKind, &'static str);

    fn visit<H, L, K>(self, strategy: H) -> Result<Self::Output>
    where
        H: Supports<L, K>,
        L: Layout,
        K: Kernel,
    {
        Ok((object(strategy), L::KIND, K::NAME))
    }
}

fn unsupported(choice: &Choice) -> Error {
    // A change of kernel is the smallest; then layout; then strategy.
    let changes = |(strategy, layout, kernel): &(&str, &str, &str)| {
        (*strategy != choice.strategy) as u32 * 4
            + (*layout != choice.layout) as u32 * 2
            + (*kernel != choice.kernel) as u32
    };
    let nearest = combinations().min_by_key(changes);
    let suggestion = nearest.map_or_else(String::new, |(strategy, layout, kernel)| {
        format!("{strategy} with layout {layout} and kernel {kernel}")
    });
    let packed_only = !combinations().any(|(strategy, layout, _)| strategy == choice.strategy && layout != Thd::NAME);
    let reason = match (choice.layout == Thd::NAME, packed_only) {
        (false, true) => "it places the documents of packed batches",
        (true, _) => "the kernel unfused materialises the scores of dense sequences only",
        (false, false) => "it merges partial results, which needs a log-sum-exp that the kernel unfused does not keep",
    };
    SupportError::Combination {
        strategy: choice.strategy.clone(),
        layout: choice.layout.clone(),
        kernel: choice.kernel.clone(),
        reason,
        suggestion,
    }
    .into()
}

/// The table as Markdown: a line per strategy, the kernels that each layout works with.
pub fn markdown() -> String {
    let mut text =
        format!("| strategy | orders | {} |\n|---|---|{}\n", layouts().join(" | "), "---|".repeat(layouts().len()));
    for line in TABLE {
        let cells = layouts().into_iter().map(|layout| {
            let kernels = line.works.iter().filter(|work| work.0 == layout).map(|work| work.1);
            kernels.collect::<Vec<_>>().join(", ")
        });
        let cells: Vec<String> = cells.collect();
        text += &format!("| `{}` | {} | {} |\n", line.strategy, line.orders.join(", "), cells.join(" | "));
    }
    text
}
