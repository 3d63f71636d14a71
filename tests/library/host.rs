//! The handler over plain memory, chosen by names: it gives what the typed one gives, to the last bit, and names what
//! does not fit.

use std::sync::Arc;

use context_parallel::comm::threads::{self, ThreadComm};
use context_parallel::degree::Runtime;
use context_parallel::error::{Error, LayoutError, Result};
use context_parallel::handler::{CpHandler, DynHandler, HostGradient, HostMut, HostRef, IGNORED, Partial, Replicated};
use context_parallel::kernel::{Flash, Kernel, KernelOn};
use context_parallel::layout::{Batch, Bshd, Layout, LayoutKind, Sbhd, Thd};
use context_parallel::mask::Mask;
use context_parallel::model::init::Normal;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Full, Shard, laid_out};
use context_parallel::strategy::select::{self, Choice, Visitor};
use context_parallel::strategy::{CpStrategy, Magi, Ring, Supports, Ulysses};
use context_parallel::tensor::{Cpu, Element, Float, Matrix};
use half::{bf16, f16};

const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 4, v_dim: 6, scale: 0.5 };
const OFFSET: i64 = 2;

/// What one rank found, by name: elements as they are in memory.
type Found = Vec<(&'static str, Vec<u8>)>;

fn bytes<T: Element>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Rows of the whole batch, in the order of the layout.
fn whole<T: Float>(seed: usize, width: usize, batch: &dyn Batch, layout: LayoutKind) -> Result<Matrix<T>> {
    laid_out(&numbers::<T>(seed as u64, batch.tokens() * width), width, batch, layout)
}

/// Valid and stored lengths; dense layouts have no padding.
fn lengths(layout: &str) -> ([usize; 3], [usize; 3]) {
    match layout == Thd::NAME {
        true => ([9, 0, 21], [11, 2, 21]),
        false => ([13; 3], [13; 3]),
    }
}

fn numbers<T: Float>(seed: u64, count: usize) -> Vec<T> {
    let mut normal = Normal::new(seed, 0);
    (0..count).map(|_| T::from_f64(normal.draw())).collect()
}

fn ids(count: usize) -> Vec<i64> {
    (0..count as i64).map(|i| (i * i + 3) % 17).collect()
}

fn widths() -> [usize; 4] {
    [SHAPE.q_width(), SHAPE.k_width(), SHAPE.v_width(), SHAPE.out_width()]
}

/// What of a handler is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Extent {
    /// Attention, with what it takes to get there: a compiled function for every combination.
    Attention,
    /// All it does.
    All,
}

/// What the typed handler gives for one batch, on every rank.
struct Typed;

impl Visitor for Typed {
    type Output = Vec<Found>;
    type Device = Cpu<f32>;

    fn visit<H: Supports<L, K>, L: Layout, K: KernelOn<Cpu<f32>>>(self, strategy: H) -> Result<Vec<Found>> {
        let batch = padded::<L>()?;
        threads::run(strategy.degree(), |comm| {
            typed_attention::<H, L, K, f32>(&typed_handler(&strategy, comm)?, batch.clone())
        })
    }
}

fn padded<L: Layout>() -> Result<Arc<L::Batch>> {
    let (valid, stored) = lengths(L::NAME);
    Ok(Arc::new(L::padded_batch_of(&valid, &stored)?))
}

fn typed_handler<H: CpStrategy, L: Layout, T: Float>(
    strategy: &H,
    comm: ThreadComm,
) -> Result<CpHandler<H, L, Cpu<T>>> {
    CpHandler::new(strategy.clone(), Cpu::<T>::new(1), comm)
}

fn typed_attention<H: Supports<L, K>, L: Layout, K: KernelOn<Cpu<T>>, T: Float>(
    handler: &CpHandler<H, L, Cpu<T>>,
    batch: Arc<L::Batch>,
) -> Result<Found> {
    let placement = handler.place(batch.clone())?;
    let shard = |seed: usize| {
        let full = whole(seed, widths()[seed], &*batch, L::KIND)?;
        Ok::<_, Error>(Arc::new(handler.dispatch(&placement, &Full::new(full, batch.clone())?)?))
    };
    let (q, k, v, dout) = (shard(0)?, shard(1)?, shard(2)?, shard(3)?);
    let plan = handler.plan(&placement, &Mask::Causal)?;
    let (out, attended) = handler.attend_with::<K>(&plan, &SHAPE, &q, &k, &v)?;
    let [dq, dk, dv] = attended.backward(handler, &dout)?;
    Ok(attention([q.data(), out.data(), dq.data(), dk.data(), dv.data()].map(|shard| bytes(shard.matrix()))))
}

/// All else that the typed handler does.
fn typed_moves<H: CpStrategy, L: Layout, T: Float>(
    handler: &CpHandler<H, L, Cpu<T>>,
    batch: Arc<L::Batch>,
) -> Result<Found> {
    let placement = handler.place(batch.clone())?;
    let shard = |seed: usize| {
        handler.dispatch(&placement, &Full::new(whole(seed, widths()[seed], &*batch, L::KIND)?, batch.clone())?)
    };
    let (q, k): (_, Shard<H::Order, L, T>) = (shard(0)?, shard(1)?);
    let mut found: Found = vec![("combine", bytes(handler.combine(&q)?.matrix()))];
    found.push(("dispatch adjoint", bytes(handler.dispatch_adjoint(&q)?.0.matrix())));
    found.push(("roll", bytes(handler.roll(&k, OFFSET, T::default())?.matrix())));
    found.push(("roll adjoint", bytes(handler.roll_adjoint(&k, OFFSET)?.matrix())));
    let gradient = Full::<L, f32>::new(whole(9 + handler.rank(), 3, &*batch, L::KIND)?, batch.clone())?;
    found.push(("partial", bytes(handler.combine_adjoint(&placement, Partial(&gradient))?.matrix())));
    found.push(("replicated", bytes(handler.combine_adjoint(&placement, Replicated(&gradient))?.matrix())));
    let ids = handler.dispatch(&placement, &Full::from_batch_first(&ids(batch.tokens()), 1, batch.clone())?)?;
    found.push(("labels", bytes(handler.roll(&ids, 1, IGNORED)?.matrix())));
    let positions: Vec<i64> = placement.positions().into_iter().map(|position| position as i64).collect();
    found.push(("positions", bytes(&positions)));
    Ok(found)
}

fn attention([dispatched, out, dq, dk, dv]: [Vec<u8>; 5]) -> Found {
    vec![("dispatch", dispatched), ("attend", out), ("dq", dq), ("dk", dk), ("dv", dv)]
}

/// The same over plain memory: operands behind one another, in columns of a wider matrix, and given away.
fn plain<T: Float>(choice: &Choice, extent: Extent) -> Result<Vec<Found>> {
    let (valid, stored) = lengths(&choice.layout);
    threads::run(choice.degree, |comm| {
        let handler = DynHandler::new(choice, Cpu::new(1), comm)?;
        let placement = handler.place_for(&valid, &stored, &[(Mask::Causal, 1)])?;
        let (batch, layout) = (&**placement.batch(), placement.layout());
        let (tokens, rows) = (batch.tokens(), placement.rows());
        let mut shards = Vec::new();
        for (seed, width) in widths().into_iter().enumerate() {
            let full = whole::<T>(seed, width, batch, layout)?;
            shards.push(handler.dispatch(&placement, HostRef::new(&full, tokens, width))?);
        }
        let [q, k, v, dout] = &shards[..] else { unreachable!("four operands") };
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let stride = q.cols() + 3;
        let mut wide = vec![T::from_f64(f64::NAN); rows * stride];
        HostMut::new(&mut wide, rows, q.cols()).with_stride(stride).write(q)?;
        let given = Matrix::from_vec(v.to_vec(), rows, v.cols());
        let queries = HostRef::new(&wide, rows, q.cols()).with_stride(stride);
        let (out, attended) = handler.attend(&plan, &SHAPE, queries, k, given)?;
        let [dq, dk, dv] = attended.clone().backward(&handler, dout)?;
        let mut found = attention([q, &out, &dq, &dk, &dv].map(|matrix| bytes(matrix)));
        if extent == Extent::Attention {
            return Ok(found);
        }
        found.push(("combine", bytes(&handler.combine(&placement, q)?)));
        found.push(("dispatch adjoint", bytes(&handler.dispatch_adjoint(&placement, q)?)));
        found.push(("roll", bytes(&handler.roll(&placement, k, OFFSET, T::default())?)));
        found.push(("roll adjoint", bytes(&handler.roll_adjoint(&placement, k, OFFSET)?)));
        let gradient = whole::<f32>(9 + handler.rank(), 3, batch, layout)?;
        let partial = HostGradient::Partial((&gradient).into());
        found.push(("partial", bytes(&handler.combine_adjoint(&placement, partial)?)));
        let replicated = HostGradient::Replicated((&gradient).into());
        found.push(("replicated", bytes(&handler.combine_adjoint(&placement, replicated)?)));
        let ids = handler.dispatch(&placement, &laid_out(&ids(tokens), 1, batch, layout)?)?;
        found.push(("labels", bytes(&handler.labels(&placement, &ids)?)));
        found.push(("positions", bytes(&handler.positions(&placement))));
        Ok(found)
    })
}

fn same<T: Float>(choice: &Choice, typed: Vec<Found>, extent: Extent) {
    let plain = plain::<T>(choice, extent).unwrap();
    assert_eq!(typed.len(), plain.len());
    for (rank, (typed, plain)) in typed.iter().zip(&plain).enumerate() {
        let names = |found: &Found| found.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(typed), names(plain));
        for ((name, typed), (_, plain)) in typed.iter().zip(plain) {
            assert!(typed == plain, "{name} of {} on rank {rank} under {choice:?}", T::DTYPE);
        }
    }
}

fn choice(strategy: &str, order: &str, layout: &str, kernel: &str) -> Choice {
    let degree = match strategy {
        "single" => 1,
        "ring-ulysses" => 4,
        _ => 2,
    };
    let [strategy, order, layout, kernel] = [strategy, order, layout, kernel].map(String::from);
    Choice { strategy, order, layout, kernel, degree, ..Choice::default() }
}

#[test]
fn every_combination_gives_what_its_types_give() {
    let mut combinations = 0;
    for (strategy, layout, kernel) in select::combinations() {
        for order in select::orders(strategy) {
            let choice = choice(strategy, order, layout, kernel);
            same::<f32>(&choice, select::select(&choice, Typed).unwrap(), Extent::Attention);
            combinations += 1;
        }
    }
    assert_eq!(combinations, 55);
}

#[test]
fn everything_else_is_what_types_give_in_any_element_type() {
    // By type here: what is chosen by name is compiled for every combination.
    fn all<H: Supports<L, Flash>, L: Layout, T: Float>(strategy: H) {
        let batch = padded::<L>().unwrap();
        let typed = threads::run(strategy.degree(), |comm| {
            let handler = typed_handler::<H, L, T>(&strategy, comm)?;
            let mut found = typed_attention::<H, L, Flash, T>(&handler, batch.clone())?;
            found.extend(typed_moves(&handler, batch.clone())?);
            Ok(found)
        });
        same::<T>(&choice(H::NAME, "", L::NAME, Flash::NAME), typed.unwrap(), Extent::All);
    }
    fn both<T: Float>() {
        all::<_, Thd, T>(<Ring>::new(Runtime(2)));
        all::<_, Thd, T>(<Ulysses>::new(Runtime(2)));
    }
    all::<_, Sbhd, f32>(<Ring>::new(Runtime(2)));
    all::<_, Bshd, f32>(<Ulysses>::new(Runtime(2)));
    all::<_, Thd, f32>(Magi::new(Runtime(2)));
    both::<f32>();
    both::<f64>();
    both::<bf16>();
    both::<f16>();
}

#[test]
fn results_and_operands_that_are_given_away_outlive_their_memory() {
    let attended = threads::run(1, |comm| {
        let handler = DynHandler::new(&choice("single", "", "thd", Flash::NAME), Cpu::new(1), comm)?;
        let placement = handler.place(&[6])?;
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let given = |width| Matrix::from_vec(numbers::<f32>(1, 6 * width), 6, width);
        let (q, k, v) = (given(SHAPE.q_width()), given(SHAPE.k_width()), given(SHAPE.v_width()));
        let (out, attended) = handler.attend(&plan, &SHAPE, q, k, v)?;
        Ok((handler, out, attended))
    });
    let (handler, out, attended) = attended.unwrap().remove(0);
    let gradients = std::thread::spawn(move || attended.backward(&handler, &out)).join().unwrap().unwrap();
    assert!(gradients.iter().all(|gradient| gradient.iter().all(|x| x.is_finite())));
}

#[test]
fn what_does_not_fit_is_named() {
    threads::run(1, |comm| {
        let handler = DynHandler::new(&choice("single", "", "thd", Flash::NAME), Cpu::new(1), comm)?;
        let placement = handler.place(&[6])?;
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let values = numbers::<f32>(1, 200);
        let rows = |rows, cols| HostRef::new(&values, rows, cols);
        let message = |result: Result<()>| result.unwrap_err().to_string();
        let attend = |q, k, v| handler.attend(&plan, &SHAPE, q, k, v).map(drop);
        let error = attend(rows(6, 16), rows(5, 8), rows(6, 12)).unwrap_err();
        assert_eq!(error, Error::from(LayoutError::RowsOf { what: "keys", expected: 6, found: 5 }));
        assert!(error.is_input());
        assert!(message(attend(rows(6, 16), rows(6, 8), rows(6, 8))).contains("values has 8 features, expected 12"));
        let held = message(attend(rows(6, 16).with_stride(40), rows(6, 8), rows(6, 12)));
        assert!(held.contains("queries: 6 rows of 16 elements, 40 from row to row"), "{held}");
        let overlapping = message(attend(rows(6, 16).with_stride(15), rows(6, 8), rows(6, 12)));
        assert!(overlapping.contains("do not lie apart"), "{overlapping}");
        let overflowing = message(attend(rows(6, 16).with_stride(usize::MAX), rows(6, 8), rows(6, 12)));
        assert!(overflowing.contains("queries"), "{overflowing}");
        let whole = message(handler.dispatch(&placement, rows(7, 2)).map(drop));
        assert_eq!(whole, "the whole sequences has 7 rows, expected 6");
        let (out, attended) = handler.attend(&plan, &SHAPE, rows(6, 16), rows(6, 8), rows(6, 12))?;
        assert!(message(attended.backward(&handler, rows(4, 24)).map(drop)).contains("the output gradient has 4 rows"));
        assert!(
            message(attended.backward(&handler, rows(6, 20)).map(drop)).contains("the output gradient has 20 features")
        );
        let mut memory = vec![0.0; 6 * 24];
        let written = message(HostMut::new(&mut memory, 6, 23).write(&out));
        assert!(written.contains("the memory for the result has 23 features, expected 24"), "{written}");
        assert!(message(HostMut::new(&mut memory[1..], 6, 24).write(&out)).contains("143 elements"));
        HostMut::new(&mut memory, 6, 24).write(&out)?;
        assert_eq!(bytes(&memory), bytes(&out));
        Ok(())
    })
    .unwrap();
    let refused = |choice: &Choice| {
        threads::run(2, |comm| DynHandler::new(choice, Cpu::new(1), comm).map(drop)).unwrap_err().to_string()
    };
    assert!(refused(&choice("ring", "", "thd", "unfused")).contains("unfused"));
    assert!(refused(&choice("wheel", "", "thd", Flash::NAME)).contains("wheel"));
    assert!(refused(&Choice { degree: 3, ..choice("ring", "", "thd", Flash::NAME) }).contains('3'));
}
