//! The cost of choosing the strategy at run time: the same work through monomorphised types, through an enum, through a
//! trait object, and by names over plain memory.
//!
//! `cargo bench --bench dispatch`

use std::hint::black_box;

use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::kernel::Flash;
use context_parallel::layout::{Layout, Thd};
use context_parallel::strategy::{AllGather, Ring, Single, Supports};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

mod common;

use common::{AttentionLayer, NamedLayer};

/// The queries rolled by one token; gives one number of the result.
fn roll<H: Supports<L, Flash>, L: Layout>(layer: &AttentionLayer<H, L>) -> Result<f32> {
    Ok(layer.handler.roll(&layer.qkv[0], 1, 0.0)?.matrix()[0])
}

/// Chosen at run time by a match.
enum AnyLayer {
    Single(AttentionLayer<Single, Thd>),
    Ring(AttentionLayer<Ring, Thd>),
    AllGather(AttentionLayer<AllGather, Thd>),
}

impl AnyLayer {
    fn new(name: &str, tokens: usize) -> Result<Self> {
        Ok(match name {
            "single" => AnyLayer::Single(AttentionLayer::new(Single, tokens)?),
            "ring" => AnyLayer::Ring(AttentionLayer::new(Ring::new(Runtime(1)), tokens)?),
            _ => AnyLayer::AllGather(AttentionLayer::new(AllGather::new(Runtime(1)), tokens)?),
        })
    }

    fn forward(&self) -> Result<f32> {
        match self {
            AnyLayer::Single(layer) => layer.forward(),
            AnyLayer::Ring(layer) => layer.forward(),
            AnyLayer::AllGather(layer) => layer.forward(),
        }
    }

    fn roll(&self) -> Result<f32> {
        match self {
            AnyLayer::Single(layer) => roll(layer),
            AnyLayer::Ring(layer) => roll(layer),
            AnyLayer::AllGather(layer) => roll(layer),
        }
    }
}

/// Chosen at run time by a virtual call.
trait DynLayer {
    fn forward(&self) -> Result<f32>;
    fn roll(&self) -> Result<f32>;
}

impl<H: Supports<L, Flash>, L: Layout> DynLayer for AttentionLayer<H, L> {
    fn forward(&self) -> Result<f32> {
        AttentionLayer::forward(self)
    }

    fn roll(&self) -> Result<f32> {
        roll(self)
    }
}

fn dyn_layer(name: &str, tokens: usize) -> Result<Box<dyn DynLayer>> {
    Ok(match name {
        "single" => Box::new(AttentionLayer::<Single, Thd>::new(Single, tokens)?),
        "ring" => Box::new(AttentionLayer::<Ring, Thd>::new(Ring::new(Runtime(1)), tokens)?),
        _ => Box::new(AttentionLayer::<AllGather, Thd>::new(AllGather::new(Runtime(1)), tokens)?),
    })
}

fn dispatch(criterion: &mut Criterion) {
    for tokens in [16, 256] {
        let typed = AttentionLayer::<Ring, Thd>::new(Ring::new(Runtime(1)), tokens).expect("a layer of one rank");
        // The name comes from a black box, so that the compiler cannot see through the choice.
        let chosen = AnyLayer::new(black_box("ring"), tokens).expect("a layer of one rank");
        let object = dyn_layer(black_box("ring"), tokens).expect("a layer of one rank");
        let named = NamedLayer::new(black_box("ring"), tokens).expect("a layer of one rank");
        let mut group = criterion.benchmark_group("attention layer");
        group.bench_function(BenchmarkId::new("typed", tokens), |b| b.iter(|| typed.forward()));
        group.bench_function(BenchmarkId::new("enum", tokens), |b| b.iter(|| chosen.forward()));
        group.bench_function(BenchmarkId::new("object", tokens), |b| b.iter(|| object.forward()));
        group.bench_function(BenchmarkId::new("DynHandler", tokens), |b| b.iter(|| named.forward()));
        group.finish();
        let mut group = criterion.benchmark_group("handler roll");
        group.bench_function(BenchmarkId::new("typed", tokens), |b| b.iter(|| roll(&typed)));
        group.bench_function(BenchmarkId::new("enum", tokens), |b| b.iter(|| chosen.roll()));
        group.bench_function(BenchmarkId::new("object", tokens), |b| b.iter(|| object.roll()));
        group.bench_function(BenchmarkId::new("DynHandler", tokens), |b| b.iter(|| named.roll()));
        group.finish();
    }
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
