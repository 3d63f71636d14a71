//! The one table of what works: strategy x layout x kernel.
//!
//! From it come the trait impls that the compiler checks, the selection by name at run time, the table in the README
//! ([`markdown`]) and the list of combinations that must not compile.

mod choice;
mod table;

pub use choice::Choice;
pub use table::{Line, TABLE, Visitor};

use std::sync::Arc;

use crate::degree::Grid;
use crate::error::{Error, Result, SupportError};
use crate::kernel::{KernelKind, KernelOn};
use crate::layout::{Layout, LayoutKind, Thd};
use crate::strategy::{
    AllGather, CpStrategy, DynStrategy, Dynamic, Ring, RingUlysses, Single, Supports, Ulysses, object,
};
use crate::tensor::Cpu;

/// Runs `visitor` with the types that `choice` names.
///
/// # Errors
/// Those of [`checked`], and what the visitor returns.
pub fn select<V: Visitor>(choice: &Choice, visitor: V) -> Result<V::Output> {
    let choice = checked(choice)?;
    table::visit(&choice, visitor).unwrap_or_else(|| Err(unsupported(&choice)))
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
    type Device = Cpu;

    fn visit<H, L, K>(self, strategy: H) -> Result<Self::Output>
    where
        H: Supports<L, K>,
        L: Layout,
        K: KernelOn<Cpu>,
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
