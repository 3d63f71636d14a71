//! One attention problem: numbers of a case, what the float64 oracle makes of them, and how far a run is from it.

use std::ops::Range;
use std::thread;

use context_parallel::comm::threads;
use context_parallel::error::Result;
use context_parallel::handler::UntypedHandler;
use context_parallel::layout::{Batch, LayoutKind};
use context_parallel::mask::{Mask, SliceKind};
use context_parallel::model::init::Normal;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::oracle::{self, Rectangle, relative_error};
use context_parallel::order::laid_out;
use context_parallel::strategy::select::Chosen;
use context_parallel::tensor::{Cpu, Float};

/// Rows that documents have beyond their tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Padding {
    /// None.
    None,
    /// Up to a multiple of twice the ranks, as Transformer Engine and Megatron-LM pad.
    ToRanks,
    /// Whatever these stored lengths leave.
    Stored(Vec<usize>),
}

/// A case in the reference's terms, scaled.
#[derive(Clone, Debug)]
pub struct ReferenceCase {
    /// Its name in the reference.
    pub name: String,
    /// Tokens of each sequence or document, without padding.
    pub lengths: Vec<usize>,
    pub padding: Padding,
    /// Query and key/value heads.
    pub heads: (usize, usize),
    /// Features of query and key heads, and of value heads.
    pub dims: (usize, usize),
    pub mask: Mask,
}

/// Key/value heads, with their query heads, that are compared with the oracle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judged {
    All,
    /// The last one: the oracle takes a second for 10^6 cells and heads.
    Last,
}

/// Out, dq, dk, dv.
pub const TENSORS: [&str; 4] = ["out", "dq", "dk", "dv"];

/// A case with numbers.
pub struct DrawnCase {
    pub case: ReferenceCase,
    pub shape: AttentionShape,
    /// Queries, keys, values and the gradient of the output, `[tokens, features]` without padding.
    operands: [Vec<f32>; 4],
    /// Key/value heads that are compared.
    judged: Range<usize>,
    /// Out, dq, dk, dv of the oracle: the columns of each judged head, one head after another.
    expected: [Vec<f64>; 4],
    /// Norm of the output gradient, over judged heads.
    scale_norm: f64,
}

impl DrawnCase {
    /// Normal numbers, cut off at -1 and 1 as in Transformer Engine's tests.
    pub fn new(case: ReferenceCase, judged: Judged) -> Self {
        let ((q_heads, kv_heads), (qk_dim, v_dim)) = (case.heads, case.dims);
        let shape = AttentionShape { q_heads, kv_heads, qk_dim, v_dim, scale: (qk_dim as f64).powf(-0.5) };
        let tokens: usize = case.lengths.iter().sum();
        let mut normal = Normal::new(17, 0);
        let widths = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()];
        let operands = widths.map(|width| (0..tokens * width).map(|_| normal.draw().clamp(-1.0, 1.0) as f32).collect());
        let judged = match judged {
            Judged::All => 0..kv_heads,
            Judged::Last => kv_heads - 1..kv_heads,
        };
        let mut problem =
            DrawnCase { case, shape, operands, judged, expected: Default::default(), scale_norm: Default::default() };
        problem.ask_the_oracle();
        problem
    }

    fn tokens(&self) -> usize {
        self.case.lengths.iter().sum()
    }

    /// Stored lengths on this many ranks.
    fn stored(&self, ranks: usize) -> Vec<usize> {
        match &self.case.padding {
            Padding::None => self.case.lengths.clone(),
            Padding::ToRanks => self.case.lengths.iter().map(|length| length.next_multiple_of(2 * ranks)).collect(),
            Padding::Stored(stored) => stored.clone(),
        }
    }

    /// Columns of a key/value head and its query heads in out, dq, dk, dv.
    fn columns(&self, kv_head: usize) -> [Range<usize>; 4] {
        let AttentionShape { qk_dim, v_dim, .. } = self.shape;
        let group = self.shape.group();
        [group * v_dim, group * qk_dim, qk_dim, v_dim].map(|width| kv_head * width..(kv_head + 1) * width)
    }

    /// Every key/value head is a problem of its own; they are shared out over the machine's cores.
    fn ask_the_oracle(&mut self) {
        let heads: Vec<usize> = self.judged.clone().collect();
        let workers = thread::available_parallelism().map_or(1, usize::from).min(heads.len().max(1));
        let this = &*self;
        let answers: Vec<([Vec<f64>; 4], f64)> = thread::scope(|scope| {
            let worker =
                |share: Vec<usize>| scope.spawn(move || share.into_iter().map(|head| this.oracle(head)).collect());
            let shares = heads.chunks(heads.len().div_ceil(workers).max(1)).map(<[usize]>::to_vec);
            let running: Vec<thread::ScopedJoinHandle<Vec<_>>> = shares.map(worker).collect();
            running.into_iter().flat_map(|worker| worker.join().expect("the oracle")).collect()
        });
        for (tensors, _) in &answers {
            self.expected.iter_mut().zip(tensors).for_each(|(all, one)| all.extend_from_slice(one));
        }
        self.scale_norm = answers.iter().map(|(_, norm)| norm * norm).sum::<f64>().sqrt();
    }

    /// Out, dq, dk, dv of one key/value head and its query heads, and the norm of their output gradient.
    fn oracle(&self, kv_head: usize) -> ([Vec<f64>; 4], f64) {
        let [out, q, k, v] = self.columns(kv_head);
        let tokens = self.tokens();
        let take = |operand: &[f32], columns: Range<usize>| -> Vec<f64> {
            let width = operand.len() / tokens.max(1);
            let row = |token: usize| &operand[token * width..][columns.clone()];
            (0..tokens).flat_map(|token| row(token).iter().map(|&x| f64::from(x))).collect()
        };
        let [all_q, all_k, all_v, all_dout] = &self.operands;
        let (q, k, v, dout) = (take(all_q, q), take(all_k, k), take(all_v, v), take(all_dout, out));
        let AttentionShape { qk_dim, v_dim, scale, .. } = self.shape;
        let heads = oracle::Heads { query: self.shape.group(), key_value: 1, qk_dim, v_dim, scale };
        let attends = predicate(&self.case.mask, &self.case.lengths);
        let problem = oracle::DenseAttention { tokens, heads, q: &q, k: &k, v: &v, attends: &*attends };
        let oracle::DenseGradients { dq, dk, dv } = oracle::attention_backward(&problem, &dout);
        ([oracle::attention(&problem).out, dq, dk, dv], oracle::norm(&dout))
    }

    /// Operands with rows of padding, which hold NaN.
    fn padded<T: Float>(&self, stored: &[usize]) -> [Vec<T>; 4] {
        let (tokens, rows) = (self.tokens(), stored.iter().sum::<usize>());
        self.operands.each_ref().map(|operand| {
            let width = operand.len() / tokens.max(1);
            let mut whole = Vec::with_capacity(rows * width);
            let mut from = 0;
            for (&length, &stored) in self.case.lengths.iter().zip(stored) {
                whole.extend(operand[from * width..(from + length) * width].iter().map(|&x| T::from_f64(f64::from(x))));
                whole.resize(whole.len() + (stored - length) * width, T::from_f64(f64::NAN));
                from += length;
            }
            whole
        })
    }

    /// The judged columns of one row.
    fn judged_part<T: Float>(&self, tensor: usize, row: &[T], into: &mut Vec<f64>) {
        for head in self.judged.clone() {
            into.extend(row[self.columns(head)[tensor].clone()].iter().map(|x| x.to_f64()));
        }
    }

    /// Relative errors of what ranks found: by rank, the memory row of each of its rows in the whole batch, and the
    /// judged columns of its rows.
    fn errors(&self, batch: &dyn Batch, layout: LayoutKind, parts: &[RankResults]) -> [f64; 4] {
        let tokens = self.tokens();
        // The token of each memory row; nothing for padding.
        let mut token_of = vec![None; batch.tokens()];
        let mut next = 0..tokens;
        for document in (0..batch.documents()).map(|i| batch.document(i)) {
            for token in document.valid_range() {
                token_of[layout.row(batch.documents(), batch.tokens(), token)] = next.next();
            }
        }
        std::array::from_fn(|tensor| {
            let expected = &self.expected[tensor];
            let width = self.columns(0)[tensor].len();
            let mut found = vec![f64::NAN; expected.len()];
            for RankResults { rows, values } in parts {
                let judged = width * self.judged.len();
                for (&row, values) in rows.iter().zip(values[tensor].chunks(judged)) {
                    let Some(token) = token_of[row] else {
                        assert!(values.iter().all(|&x| x == 0.0), "{}: padding has a value", self.case.name);
                        continue;
                    };
                    for (head, values) in values.chunks(width).enumerate() {
                        let place = &mut found[(head * tokens + token) * width..][..width];
                        place.iter_mut().zip(values).for_each(|(place, &value)| *place = value);
                    }
                }
            }
            relative_error(&found, expected, if tensor == 0 { 0.0 } else { self.scale_norm })
        })
    }
}

/// The oracle's form of a mask on documents without padding.
fn predicate(mask: &Mask, lengths: &[usize]) -> Box<dyn Fn(usize, usize) -> bool> {
    let documents = oracle::documents(lengths, lengths);
    match mask {
        Mask::Full => Box::new(oracle::full(&documents)),
        Mask::Causal => Box::new(oracle::causal(&documents)),
        Mask::Window { left, right } => Box::new(oracle::window(&documents, *left, *right)),
        Mask::Prefix(lengths) => Box::new(oracle::prefix(&documents, lengths)),
        Mask::Slices(slices) => {
            let rectangles: Vec<Rectangle> = slices
                .iter()
                .map(|slice| Rectangle {
                    queries: slice.q.clone(),
                    keys: slice.k.clone(),
                    cut_upper: matches!(slice.kind, SliceKind::Causal | SliceKind::BiCausal),
                    cut_lower: matches!(slice.kind, SliceKind::InvCausal | SliceKind::BiCausal),
                })
                .collect();
            Box::new(oracle::rectangles(&documents, &rectangles))
        }
    }
}

/// What one rank found.
struct RankResults {
    /// By row, its memory row in the whole batch.
    rows: Vec<usize>,
    /// Judged columns of out, dq, dk, dv, row by row.
    values: [Vec<f64>; 4],
}

impl DrawnCase {
    /// The relative errors of out, dq, dk, dv under one combination in numbers of `T`. By the untyped handler, which is
    /// compiled once for all combinations; that typed ones give the same to the last bit is `host.rs`'s to show.
    pub fn attend<T: Float>(&self, chosen: &Chosen) -> Result<[f64; 4]> {
        let Chosen { strategy, layout, kernel } = chosen;
        let (shape, stored) = (&self.shape, self.stored(strategy.degree()));
        let batch = layout.padded_batch_of(&self.case.lengths, &stored)?;
        // Made once, not on every rank: the solver is slow without optimisation.
        let deal = strategy.deal(&*batch, &[(self.case.mask.clone(), 1)])?;
        let operands = self.padded::<T>(&stored);
        let widths = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()];
        let parts = threads::run(strategy.degree(), |comm| {
            let handler = UntypedHandler::new(strategy.clone(), *layout, Cpu::<T>::new(1), Box::new(comm))?;
            let placement = handler.place_with(batch.clone(), deal.clone())?;
            let mut shards = Vec::new();
            for (values, width) in operands.iter().zip(widths) {
                shards.push(handler.by_ref().dispatch(&placement, &laid_out(values, width, &*batch, *layout)?)?);
            }
            let ([q, k, v], dout) = ([&shards[0], &shards[1], &shards[2]], &shards[3]);
            let plan = handler.plan(&placement, &self.case.mask)?;
            let (out, core) = handler.by_ref().core_attn(kernel.object(), &plan, shape, [q, k, v])?;
            let [dq, dk, dv] = handler.by_ref().core_attn_backward(&plan, [q, k, v], &core, dout)?;
            let mut values: [Vec<f64>; 4] = Default::default();
            for (tensor, (values, shard)) in values.iter_mut().zip([out, dq, dk, dv]).enumerate() {
                let matrix = shard.into_matrix();
                (0..matrix.rows()).for_each(|row| self.judged_part(tensor, matrix.row(row), values));
            }
            Ok(RankResults { rows: placement.full_rows_of(placement.rank()).to_vec(), values })
        })?;
        Ok(self.errors(&*batch, *layout, &parts))
    }
}
