//! Names, shapes, order of elements.

use super::*;
use crate::model::config::Sizes;
use crate::tensor::Cpu;

fn small() -> Config {
    Config::llama(Sizes { vocab_size: 11, hidden_size: 8, intermediate_size: 12, layers: 2, heads: 4, kv_heads: 2 })
        .unwrap()
}

#[test]
fn names_shapes_and_decay() {
    let list = ParameterList::new(&small());
    assert_eq!(list.len(), 1 + 2 * 9 + 2);
    let layer = list.layers[1];
    assert_eq!(list[layer.key.weight].name, "model.layers.1.self_attn.k_proj.weight");
    assert_eq!(list[layer.key.weight].shape, [4, 8]);
    assert_eq!(list[layer.key.weight].memory_shape(), (8, 4));
    assert_eq!(list[layer.down.weight].memory_shape(), (12, 8));
    assert_eq!(list[list.embedding].memory_shape(), (11, 8));
    assert_eq!(list[layer.input_norm].memory_shape(), (1, 8));
    assert!(list[list.embedding].decays() && list[layer.up.weight].decays() && !list[list.norm].decays());
    assert_eq!(list.head.map(|head| list[head].name.as_str()), Some("lm_head.weight"));
    assert_eq!(list.find("model.norm.weight"), Some(list.norm));
    let by_hand = 2 * 11 * 8 + 2 * (8 * 8 * 2 + 2 * 4 * 8 + 3 * 12 * 8 + 2 * 8) + 8;
    assert_eq!(list.elements(), by_hand);
}

#[test]
fn ties_biases_and_head_norms() {
    let mut config = small();
    config.tie_word_embeddings = true;
    config.attention_bias.query = true;
    config.qk_norm = true;
    let list = ParameterList::new(&config);
    assert_eq!(list.head, None);
    let layer = list.layers[0];
    let bias = layer.query.bias.unwrap();
    assert_eq!(
        (list[bias].name.as_str(), list[bias].shape.as_slice()),
        ("model.layers.0.self_attn.q_proj.bias", [8].as_slice())
    );
    assert_eq!(layer.key.bias, None);
    assert_eq!(list[layer.head_norms.unwrap().1].shape, [2]);
}

#[test]
fn linear_layers_are_transposed_and_come_back() {
    let device = Cpu::<f32>::new(1);
    let list = ParameterList::new(&small());
    let set: Master<Cpu<f32>> =
        ParameterSet::from_host(&device, &list, |_, spec| Ok((0..spec.len()).map(|i| i as f32).collect())).unwrap();
    let key = list.layers[0].key.weight;
    // Row `in` of memory holds column `in` of the file's [4, 8].
    assert_eq!(set[key].row(1), [1.0, 9.0, 17.0, 25.0]);
    for (id, spec) in list.iter() {
        assert_eq!(set.to_host(&device, id), (0..spec.len()).map(|i| i as f32).collect::<Vec<_>>(), "{}", spec.name);
    }
}

#[test]
fn two_parameters_at_once() {
    let list = ParameterList::new(&small());
    let mut set: Gradients<Cpu<f32>> = ParameterSet::zeros(&Cpu::<f32>::new(1), &list);
    let (a, b) = (list.norm, list.embedding);
    let (first, second) = set.pair_mut(a, b);
    assert_eq!((first.rows(), second.rows()), (1, 11));
    first[0] = 1.0;
    second[0] = 2.0;
    assert_eq!((set[a][0], set[b][0]), (1.0, 2.0));
}
