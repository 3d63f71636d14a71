//! The chart of a run's losses, as SVG.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{DataError, Result};
use crate::train::trainer::StepRecord;

/// Most points of the thin line: more cannot be seen, and make the file large.
const POINTS: usize = 1500;
/// Fewest steps with a smoothed line: the mean of fewer is so nearly the losses that one line would hide the other.
const SMOOTHED_FROM: usize = 50;
const SIZE: (u32, u32) = (960, 540);
const TRAINING: RGBColor = RGBColor(31, 111, 180);
const HELD_OUT: RGBColor = RGBColor(214, 96, 20);
const GRID: RGBColor = RGBColor(226, 229, 233);
const INK: RGBColor = RGBColor(60, 66, 74);

/// Draws training loss (each step, and from 50 steps on smoothed by a centred mean) and held-out loss over steps, with
/// `name` in the title and the last losses below it.
///
/// Records whose loss is not finite are left out. Returns the SVG's text.
pub fn loss_chart(name: &str, records: &[StepRecord]) -> Result<String> {
    let training: Vec<(f64, f64)> = finite(records.iter().map(|r| (r.step, Some(r.loss))));
    let held_out: Vec<(f64, f64)> = finite(records.iter().map(|r| (r.step, r.held_out_loss)));
    let mut svg = String::new();
    draw(&mut svg, name, &training, &held_out)
        .map_err(|error| DataError::Write { path: "loss.svg".into(), reason: error.to_string() })?;
    Ok(svg)
}

fn finite(points: impl Iterator<Item = (u64, Option<f64>)>) -> Vec<(f64, f64)> {
    points.filter_map(|(step, loss)| Some((step as f64, loss.filter(|loss| loss.is_finite())?))).collect()
}

/// The last losses in words.
fn last_losses(training: &[(f64, f64)], held_out: &[(f64, f64)]) -> String {
    let last = |what: &str, points: &[(f64, f64)]| {
        points.last().map(|(step, loss)| format!("{what} {loss:.4} at step {step}"))
    };
    let losses = [last("training", training), last("held out", held_out)].into_iter().flatten();
    losses.collect::<Vec<_>>().join(", ")
}

fn draw(
    svg: &mut String,
    name: &str,
    training: &[(f64, f64)],
    held_out: &[(f64, f64)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let last = training.last().map_or(1.0, |point| point.0).max(2.0);
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .margin_right(28)
        .margin_top(72)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(1.0..last, range(training, held_out))?;
    let label = ("sans-serif", 17).into_font().color(&INK);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(label.clone())
        .axis_desc_style(("sans-serif", 18).into_font().color(&INK))
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .draw()?;

    let stride = training.len().div_ceil(POINTS).max(1);
    let thin = |points: &[(f64, f64)]| points.iter().copied().step_by(stride).collect::<Vec<_>>();
    let is_long = training.len() >= SMOOTHED_FROM;
    let each = if is_long { TRAINING.mix(0.35).stroke_width(1) } else { TRAINING.stroke_width(2) };
    chart.draw_series(LineSeries::new(thin(training), each))?;
    let mut keys = vec![("training, each step", each)];
    if is_long {
        chart.draw_series(LineSeries::new(thin(&smoothed(training)), TRAINING.stroke_width(3)))?;
        keys.push(("training, smoothed", TRAINING.stroke_width(3)));
    }
    if !held_out.is_empty() {
        chart.draw_series(LineSeries::new(held_out.iter().copied(), HELD_OUT.filled()).point_size(4))?;
        keys.push(("held out", HELD_OUT.stroke_width(3)));
    }
    let centred = Pos::new(HPos::Center, VPos::Center);
    for (size, y, text) in [(24, 28, format!("{name}: loss per step")), (17, 54, last_losses(training, held_out))] {
        let style = ("sans-serif", size).into_font().color(&INK).pos(centred);
        root.draw(&Text::new(text, (SIZE.0 as i32 / 2, y), style))?;
    }
    // The legend, drawn by hand: plotters would measure its box with a font that it does not have here.
    let style = label.pos(Pos::new(HPos::Right, VPos::Center));
    for (row, (name, line)) in keys.into_iter().enumerate() {
        let (right, y) = (SIZE.0 as i32 - 40, 94 + 22 * row as i32);
        root.draw(&PathElement::new(vec![(right - 30, y), (right, y)], line))?;
        root.draw(&Text::new(name, (right - 38, y), style.clone()))?;
    }
    root.present()?;
    Ok(())
}

/// The losses shown, with some air; never an empty range.
fn range(training: &[(f64, f64)], held_out: &[(f64, f64)]) -> std::ops::Range<f64> {
    let losses = || training.iter().chain(held_out).map(|point| point.1);
    let (low, high) = (losses().fold(f64::INFINITY, f64::min), losses().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return 0.0..1.0;
    }
    let air = (0.05 * (high - low)).max(1e-3 * high.abs()).max(1e-6);
    (low - air)..(high + air)
}

/// The mean over about a twenty-fifth of the run. It is centred, and so shorter at the steep start; at the end it
/// looks back only.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 50;
    let mut sums = Vec::with_capacity(points.len() + 1);
    sums.push(0.0);
    for point in points {
        sums.push(sums[sums.len() - 1] + point.1);
    }
    let mean = |index: usize| {
        let back = reach.min(index);
        let ahead = back.min(points.len() - 1 - index);
        (sums[index + ahead + 1] - sums[index - back]) / (back + ahead + 1) as f64
    };
    points.iter().enumerate().map(|(index, point)| (point.0, mean(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss: f64, held_out_loss: Option<f64>) -> StepRecord {
        StepRecord {
            step,
            loss,
            mtp_loss: None,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens: 1,
            micro_batches: 1,
            tokens_per_second: 1.0,
            seconds: 1.0,
            held_out_loss,
        }
    }

    #[test]
    fn draws_axes_lines_and_held_out_points() {
        let records: Vec<StepRecord> =
            (1..=200).map(|step| record(step, 1.5 + 4.0 / step as f64, (step % 50 == 0).then_some(2.0))).collect();
        let svg = loss_chart("run", &records).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        let last = "training 1.5200 at step 200, held out 2.0000 at step 200";
        for text in ["loss (nats per token)", "step", "training, smoothed", "held out", "run: loss per step", last] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("<circle").count(), 4);
        let without = loss_chart("run", &records[..40]).unwrap();
        assert!(svg.contains("stroke-width=\"3\"") && !without.contains("stroke-width=\"3\""));
        assert!(without.contains("training, each step") && !without.contains("smoothed"));
        assert!(!without.contains("held out") && !without.contains("<circle"));
    }

    #[test]
    fn draws_what_there_is() {
        for records in [
            vec![],
            vec![record(1, 2.0, Some(2.0))],
            vec![record(1, 0.0, None), record(2, 0.0, None)],
            vec![record(1, f64::NAN, Some(f64::INFINITY)), record(2, 3.0, None)],
        ] {
            let svg = loss_chart("run", &records).unwrap();
            assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{svg}");
        }
        let long: Vec<StepRecord> = (1..=20_000).map(|step| record(step, 1.0 / step as f64, None)).collect();
        assert!(loss_chart("run", &long).unwrap().len() < 100_000);
    }

    #[test]
    fn smoothing_keeps_lines_straight_and_evens_out_noise() {
        let line: Vec<(f64, f64)> = (0..300).map(|i| (i as f64, 3.0 * i as f64 + 1.0)).collect();
        for (smooth, point) in smoothed(&line).iter().zip(&line[..294]) {
            assert!((smooth.1 - point.1).abs() < 1e-9);
        }
        let noise: Vec<(f64, f64)> = (0..300).map(|i| (i as f64, if i % 2 == 0 { 1.0 } else { -1.0 })).collect();
        assert!(smoothed(&noise)[6..].iter().all(|point| point.1.abs() < 0.2), "up to the last step");
        assert!(smoothed(&[]).is_empty());
    }
}
