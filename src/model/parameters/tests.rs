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
    assert_eq!(set.view(key).row(1), [1.0, 9.0, 17.0, 25.0]);
    for (id, spec) in list.iter() {
        let expected: Vec<f32> = (0..spec.len()).map(|i| i as f32).collect();
        assert_eq!(set.to_host(&device, id).unwrap(), expected, "{}", spec.name);
    }
}

/// Every element of the flat buffer belongs to one parameter, what decays comes first, and what reads the same is side
/// by side.
#[test]
fn parameters_fill_one_buffer() {
    for biases in [[false; 3], [true; 3], [true, false, true]] {
        let mut config = small();
        (config.attention_bias.query, config.attention_bias.key, config.attention_bias.value) = biases.into();
        config.mlp_bias = biases[0];
        let list = ParameterList::new(&config.with_mtp_depth(1));
        let mut set: Gradients<Cpu<f32>> = ParameterSet::zeros(&Cpu::<f32>::new(1), &list);
        assert_eq!(set.flat().len(), list.iter().map(|(_, spec)| spec.len()).sum::<usize>());
        for id in list.ids() {
            let mut view = set.view_mut(id);
            assert_eq!((view.rows(), view.cols()), list[id].memory_shape());
            (0..view.rows()).for_each(|row| view.row_mut(row).iter_mut().for_each(|x| *x += 1.0 + id.index() as f32));
        }
        for (id, spec) in list.iter() {
            let values = set.view(id).to_vec();
            assert!(values.iter().all(|&x| x == 1.0 + id.index() as f32), "{} overlaps", spec.name);
        }
        let decays: Vec<bool> = set.flat().iter().map(|&x| list[ParameterId(x as usize - 1)].decays()).collect();
        assert!(decays.iter().enumerate().all(|(at, &decays)| decays == (at < list.decayed())));
        let layer = list.layers[1];
        let qkv = set.stored(layer.qkv.weight);
        let ids = [layer.query, layer.key, layer.value].map(|linear| 1.0 + linear.weight.index() as f32);
        assert_eq!(
            (qkv.rows(), qkv.cols(), qkv.row(7)[0], qkv.row(7)[8], qkv.row(7)[12]),
            (8, 16, ids[0], ids[1], ids[2])
        );
        let bias = layer.qkv.bias.map(|bias| set.stored(bias).len());
        assert_eq!(bias, biases.iter().all(|&bias| bias).then_some(16));
        assert_eq!(set.stored(layer.gate_up.weight).cols(), 24);
    }
}
