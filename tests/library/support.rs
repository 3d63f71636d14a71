//! The support table, and everything that is derived from it, agree.

use std::fmt::Debug;
use std::path::Path;

use context_parallel::attention::AttentionSaved;
use context_parallel::comm::Communicator;
use context_parallel::degree::{Fixed, Grid};
use context_parallel::error::{Result, SupportError};
use context_parallel::handler::{Attended, CpHandler, DynCoreAttention, DynHandler, HostAttended, UntypedHandler};
use context_parallel::kernel::{Flash, KernelOn, LogSumExp, Unfused};
use context_parallel::layout::{Bshd, Layout, Sbhd, Thd};
use context_parallel::model::{Activations, DynActivations};
use context_parallel::order::{Natural, Striped, Zigzag};
use context_parallel::strategy::select::{self, Choice, TABLE, Visitor};
use context_parallel::strategy::{AllGather, GatherKv, LocalKv, Ring, RingKv, Row, RunsOn, Single, Supports, Ulysses};
use context_parallel::tensor::Cpu;
use half::bf16;
use static_assertions::{assert_eq_size, assert_impl_all, assert_not_impl_any};

// Markers and strategies of fixed degree take no space.
assert_eq_size!(Bshd, Sbhd, Thd, Flash, Unfused, Zigzag, Natural, Striped<4>, Single, ());
assert_eq_size!(Ring<Fixed<4>>, AllGather<Fixed<8>, Striped>, Ulysses<Fixed<4>>, Fixed<2>, ());
// Handlers can be moved to the thread of their rank.
assert_impl_all!(CpHandler<Ring, Thd>: Send, Sync);
assert_impl_all!(CpHandler<AllGather, Sbhd, Cpu<bf16>, Box<dyn Communicator>>: Send, Sync);
assert_impl_all!(UntypedHandler<Cpu>: Send, Sync);
assert_impl_all!(DynHandler: Send, Sync);
// What a forward pass leaves goes to other threads, is copied and printed.
assert_impl_all!(Attended<Ring, Thd, Cpu>: Send, Sync, Clone, Debug);
assert_impl_all!(HostAttended<'static, bf16>: Send, Sync, Clone, Debug);
assert_impl_all!(DynCoreAttention<Cpu>: Send, Sync, Clone, Debug);
assert_impl_all!(AttentionSaved<Cpu>: Send, Sync, Clone, Debug);
assert_impl_all!(Activations<Ring, Thd, Flash, Cpu>: Send, Sync, Clone, Debug);
assert_impl_all!(DynActivations<Cpu>: Send, Sync, Clone, Debug);
// What must not exist.
assert_not_impl_any!(Unfused: LogSumExp);
assert_not_impl_any!(RingKv: RunsOn<Unfused>);
assert_not_impl_any!(Ring: Row<Bshd, Unfused>, Row<Thd, Unfused>, Supports<Bshd, Unfused>);
assert_not_impl_any!(AllGather: Supports<Thd, Unfused>);
assert_not_impl_any!(Single: Supports<Thd, Unfused>);
assert_impl_all!(LocalKv: RunsOn<Unfused>, RunsOn<Flash>);
assert_impl_all!(GatherKv: RunsOn<Unfused>);

fn choice(strategy: &str, order: &str, layout: &str, kernel: &str, degree: usize) -> Choice {
    let name = str::to_string;
    Choice {
        strategy: name(strategy),
        order: name(order),
        layout: name(layout),
        kernel: name(kernel),
        degree,
        ..Choice::default()
    }
}

/// Says which types it was run with.
struct Names;

impl Visitor for Names {
    type Output = (String, usize);
    type Device = Cpu;

    fn visit<H, L, K>(self, strategy: H) -> Result<(String, usize)>
    where
        H: Supports<L, K>,
        L: Layout,
        K: KernelOn<Cpu>,
    {
        use context_parallel::order::TokenOrder;
        Ok((format!("{} {} {} {}", H::NAME, H::Order::NAME, L::NAME, K::NAME), strategy.degree()))
    }
}

#[test]
fn every_line_is_selected_by_its_names() {
    let mut selected = 0;
    for line in TABLE {
        for order in line.orders {
            for (layout, kernel) in line.works {
                let degree = if line.strategy == "single" { 1 } else { 3 };
                let found = select::select(&choice(line.strategy, order, layout, kernel, degree), Names).unwrap();
                assert_eq!(found, (format!("{} {order} {layout} {kernel}", line.strategy), degree));
                selected += 1;
            }
        }
    }
    assert_eq!(selected, 5 + 3 * 3 + 3 * 5 + 3 * 5 + 3 * 3 + 2);
}

#[test]
fn names_of_other_systems_are_known() {
    let names = |strategy| select::select(&choice(strategy, "zigzag", "thd", "flash", 2), Names).unwrap().0;
    assert_eq!(names("p2p"), "ring zigzag thd flash");
    assert_eq!(names("all_gather"), "all-gather zigzag thd flash");
    assert_eq!(names("All-Gather"), "all-gather zigzag thd flash");
    assert_eq!(names("a2a"), "ulysses zigzag thd flash");
    assert_eq!(names("a2a+p2p"), "ring-ulysses zigzag thd flash");
}

#[test]
fn what_is_not_in_the_table_is_refused_with_the_nearest_that_works() {
    for strategy in select::strategies() {
        for layout in select::layouts() {
            for kernel in select::kernels() {
                let degree = if strategy == "single" { 1 } else { 2 };
                let order = select::orders(strategy)[0];
                let found = select::select(&choice(strategy, order, layout, kernel, degree), Names);
                match select::works(strategy, layout, kernel) {
                    true => assert!(found.is_ok(), "{strategy} {layout} {kernel}"),
                    false => {
                        let message = found.unwrap_err().to_string();
                        let layout = if select::works(strategy, layout, "flash") { layout } else { "thd" };
                        let nearest = format!("{strategy} with layout {layout} and kernel flash works");
                        assert!(message.ends_with(&nearest), "{message}");
                    }
                }
            }
        }
    }
}

#[test]
fn unknown_names_list_what_exists() {
    let message = |choice: Choice| select::select(&choice, Names).unwrap_err().to_string();
    assert!(message(choice("mesh", "zigzag", "thd", "flash", 2)).contains("single, ring, all-gather"));
    assert!(message(choice("ring", "zigzag", "bhsd", "flash", 2)).contains("bshd, sbhd, thd"));
    assert!(message(choice("ring", "spiral", "thd", "flash", 2)).contains("zigzag, striped, contiguous"));
    assert!(message(choice("ring", "zigzag", "thd", "fast", 2)).contains("flash, unfused"));
    assert!(message(choice("single", "", "thd", "flash", 2)).contains("1 rank, not on 2"));
    let order = message(choice("single", "striped", "thd", "flash", 1));
    assert!(order.contains("single has no order striped") && order.contains("one of natural"), "{order}");
    let order = message(choice("ring", "natural", "thd", "flash", 2));
    assert!(order.contains("ring has no order natural") && order.contains("zigzag, striped, contiguous"), "{order}");
}

/// What follows the combination in a sentence of the compiler (first lines of a case that must not compile) or of an
/// error.
fn rule(sentence: &str) -> &str {
    sentence.split_once(": ").map(|(_, rule)| rule).unwrap_or_else(|| panic!("no rule in {sentence}"))
}

#[test]
fn a_grid_is_for_ring_ulysses_and_has_all_ranks() {
    let wrong = |strategy: &str, grid: Grid| {
        let choice = Choice { grid: Some(grid), ..choice(strategy, "", "thd", "flash", 12) };
        select::checked(&choice).unwrap_err().to_string()
    };
    let grid = Grid { outer: 4, inner: 3, inner_adjacent: true };
    assert!(wrong("ring", grid).contains("4x3 ranks for ring, which has one degree"));
    assert!(wrong("ring-ulysses", Grid { outer: 3, ..grid }).contains("3x3 for 12 ranks"));
}

#[test]
fn compiler_and_constructor_refuse_heads_with_the_same_sentence() {
    let cases = [
        include_str!("../compile_fail/heads_not_shared_out_by_ulysses.rs"),
        include_str!("../compile_fail/heads_not_shared_out_by_ring_ulysses.rs"),
        include_str!("../compile_fail/heads_fewer_than_ranks.rs"),
        include_str!("../compile_fail/heads_not_shared_out_by_a_strategy_of_ones_own.rs"),
    ];
    let error = |strategy: &str, grid| {
        let choice = Choice { grid, ..choice(strategy, "", "thd", "flash", 12) };
        select::fit_heads(select::checked(&choice).unwrap(), 8).unwrap_err()
    };
    let grid = Grid { outer: 4, inner: 3, inner_adjacent: true };
    let (ulysses, ring_ulysses) = (error("ulysses", None), error("ring-ulysses", Some(grid)));
    assert_eq!(ulysses, SupportError::Heads { strategy: "ulysses", q_heads: 8, ranks: 12 }.into());
    assert_eq!(ring_ulysses, SupportError::Heads { strategy: "ring-ulysses", q_heads: 8, ranks: 3 }.into());
    for error in [ulysses, ring_ulysses].map(|error| error.to_string()) {
        assert!(error.contains(" cannot run a model with 8 query heads on "), "{error}");
        for case in cases {
            let sentence = case.lines().nth(1).unwrap();
            assert!(sentence.contains(" cannot run a model with `FixedHeads<"), "{sentence}");
            assert_eq!(rule(sentence), rule(&error));
        }
    }
}

#[test]
fn the_readme_has_the_table() {
    let readme = include_str!("../../README.md");
    let table = select::markdown();
    assert!(readme.contains(&table), "put this table into README.md:\n\n{table}");
}

/// Names of Megatron-LM and of the handler that was proposed for it.
const NAMES_ELSEWHERE: [&str; 12] = [
    "ContextParallelHandler",
    "DefaultContextParallelHandler",
    "MagiAttnContextParallelHandler",
    "get_cp_handler_cls",
    "get_batch_on_this_cp_rank",
    "get_thd_batch_on_this_cp_rank",
    "get_rotary_seq_len",
    "get_emb_on_this_cp_rank",
    "apply_rotary_pos_emb",
    "roll_tensor",
    "core_attn",
    "PackedSeqParams",
];

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found
                .extend(path.extension().filter(|kind| *kind == "rs").map(|_| std::fs::read_to_string(&path).unwrap())),
        }
    }
}

#[test]
fn names_of_megatron_lm_are_found_in_the_documentation() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let page = std::fs::read_to_string(root.join("src/coming_from_megatron.md")).unwrap();
    for name in NAMES_ELSEWHERE {
        let ways = [format!("#[doc(alias = \"{name}\")]"), format!("pub fn {name}(")];
        assert!(files.iter().any(|file| ways.iter().any(|way| file.contains(way))), "nothing is found for {name}");
        assert!(page.contains(name), "the page does not map {name}");
    }
}
