//! The padding token: its look-up gives no gradient; a tied output layer still does.

use std::collections::BTreeMap;
use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::handler::CpHandler;
use context_parallel::kernel::Flash;
use context_parallel::layout::{Layout, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::parameters::Master;
use context_parallel::model::{Config, GptModel, ParameterList, Sizes, init};
use context_parallel::strategy::Single;
use context_parallel::tensor::Cpu;

const PAD: usize = 3;
const HIDDEN: usize = 8;
const TOKENS: [i64; 8] = [3, 5, 3, 1, 3, 0, 6, 3];
const LABELS: [i64; 8] = [5, 3, 1, 3, 0, 6, 3, 2];

/// Gradients by name, in double precision.
fn gradients(tied: bool, pad: Option<usize>) -> BTreeMap<String, Vec<f64>> {
    let sizes = Sizes { vocab_size: 7, hidden_size: HIDDEN, intermediate_size: 12, layers: 2, heads: 2, kv_heads: 1 };
    let mut config = Config::llama(sizes).unwrap();
    (config.tie_word_embeddings, config.pad_token_id) = (tied, pad);
    config.initializer_range = 0.5;
    let device = Cpu::<f64>::default();
    let list = ParameterList::new(&config);
    let fresh = init::fresh(&device, &config, &list, 0).unwrap();
    // An output layer of its own has the numbers of a tied one.
    let table = fresh.to_host(&device, list.embedding).unwrap();
    let numbers = |id| if Some(id) == list.head { Ok(table.clone()) } else { fresh.to_host(&device, id) };
    let master = Master::<Cpu<f64>>::from_host(&device, &list, |id, _| numbers(id)).unwrap();
    let found = threads::run(1, |comm| {
        let handler = CpHandler::<Single, Thd, _, _>::new(Single, device.clone(), comm)?;
        let model = GptModel::<Single, Thd, Flash, Cpu<f64>>::from_master(device.clone(), &config, &master)?;
        let shape = Arc::new(Thd::batch_of(&[5, 3])?);
        let Inputs { tokens, labels, weights } = Inputs::new(&handler, shape, &TOKENS, &LABELS)?;
        let activations = model.forward(&handler, &tokens)?;
        let mut gradients = model.zero_gradients();
        let (_, dhidden) = model.loss_backward(&activations, &labels, &weights, 1.0, &mut gradients)?;
        model.backward(&handler, activations, &dhidden, &mut gradients)?;
        list.iter().map(|(id, spec)| Ok((spec.name.clone(), gradients.to_host(&device, id)?))).collect()
    });
    found.unwrap().swap_remove(0)
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

#[test]
fn looking_it_up_gives_no_gradient() {
    let (with, without) = (gradients(false, Some(PAD)), gradients(false, None));
    for name in without.keys() {
        let (mut expected, found) = (without[name].clone(), &with[name]);
        if name == EMBEDDING {
            let row = &mut expected[PAD * HIDDEN..][..HIDDEN];
            assert!(row.iter().all(|value| *value != 0.0), "the row has a gradient to lose");
            row.fill(0.0);
        }
        assert_eq!(found, &expected, "{name}");
    }
}

#[test]
fn a_tied_output_layer_still_gives_one() {
    let (tied, apart) = (gradients(true, Some(PAD)), gradients(false, Some(PAD)));
    let sum = apart[EMBEDDING].iter().zip(&apart[HEAD]).map(|(look_up, head)| look_up + head);
    for (found, expected) in tied[EMBEDDING].iter().zip(sum) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }
    let row = PAD * HIDDEN..(PAD + 1) * HIDDEN;
    assert_eq!(apart[EMBEDDING][row.clone()], [0.0; HIDDEN]);
    assert!(tied[EMBEDDING][row].iter().all(|value| *value != 0.0));
}
