//! The segments of a log as a picture: a map of them, and the order in which they were written.

use super::segments::{LogView, in_order_of_filling, live_share};
use std::collections::HashMap;
use std::fmt::{self, Write};
use swapfs_format::size::human;
use swapfs_format::superblock::Superblock;
use swapfsd::backend::log::survey::{Segment, SegmentState};

/// More cells than this are no picture any more: a cell then stands for several segments.
const MAX_CELLS: usize = 16_384;
const WIDTH: usize = 960;
const MARGIN: usize = 24;
const INNER: usize = WIDTH - 2 * MARGIN;
const PLOT_HEIGHT: usize = 320;

/// A colour, each part 0 to 1.
#[derive(Debug, Clone, Copy)]
struct Colour(f64, f64, f64);

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let byte = |part: f64| (part.clamp(0.0, 1.0) * 255.0).round() as u8;
        write!(f, "#{:02x}{:02x}{:02x}", byte(self.0), byte(self.1), byte(self.2))
    }
}

const FREE: Colour = Colour(0.93, 0.93, 0.93);
const DEAD: Colour = Colour(0.55, 0.55, 0.58);
const CHECKPOINT: Colour = Colour(0.25, 0.45, 0.85);
const DAMAGED: Colour = Colour(0.85, 0.05, 0.55);
const ANCHORS: Colour = Colour(0.1, 0.1, 0.1);

/// From red, where little lives, to green; the older, the darker.
fn live_colour(share: f64, youth: f64) -> Colour {
    let bright = 0.45 + 0.5 * youth;
    Colour(bright * (1.0 - share).sqrt(), bright * share.sqrt(), bright * 0.15)
}

/// The picture, as SVG.
#[must_use]
pub(super) fn svg(view: &LogView, superblock: &Superblock) -> String {
    let segments = &view.survey.segments;
    let step = (segments.len() + 1).div_ceil(MAX_CELLS);
    let cell_count = (segments.len() + 1).div_ceil(step);
    let columns = columns(cell_count);
    let cell = INNER / columns;
    let map_height = cell_count.div_ceil(columns) * cell;
    let map_top = 96;
    let plot_top = map_top + map_height + 56;
    let height = plot_top + PLOT_HEIGHT + 48;
    let mut out = String::new();
    // Writing to a string does not fail.
    let _: fmt::Result = (|| {
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">"
        )?;
        writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>")?;
        head(&mut out, view, superblock, step)?;
        map(&mut out, view, step, columns, cell, map_top)?;
        pattern(&mut out, view, plot_top)?;
        writeln!(out, "</svg>")
    })();
    out
}

/// Cells in a row, so that the map is about half as high as wide.
fn columns(cell_count: usize) -> usize {
    let columns = ((cell_count * 2) as f64).sqrt().ceil() as usize;
    columns.clamp(16, INNER / 3)
}

fn head(out: &mut String, view: &LogView, superblock: &Superblock, step: usize) -> fmt::Result {
    let name = if superblock.label.is_empty() {
        superblock.uuid.to_string()
    } else {
        format!("{} ({})", superblock.label, superblock.uuid)
    };
    let totals = &view.survey.totals;
    writeln!(
        out,
        "<title>Segments of the swapfs log {0}</title>\n<text x=\"{MARGIN}\" y=\"28\" \
         font-size=\"17\">Segments of the swapfs log {0}</text>",
        escaped(&name)
    )?;
    let per_cell = if step > 1 { format!(", {step} in a cell") } else { String::new() };
    let state = if view.in_use { "in use" } else { "stopped in order" };
    writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"48\">{} segments of {}{per_cell}; {} live, {} dead, {} free; \
         {state}</text>",
        view.survey.segments.len() + 1,
        human(view.survey.segment_bytes),
        human(totals.live_bytes),
        human(totals.dead_bytes),
        human(totals.free_bytes)
    )?;
    let legend = [
        (ANCHORS, "anchors"),
        (live_colour(0.1, 1.0), "10 % live"),
        (live_colour(0.5, 1.0), "50 %"),
        (live_colour(1.0, 1.0), "100 %"),
        (live_colour(1.0, 0.0), "100 %, oldest"),
        (DEAD, "dead"),
        (FREE, "free"),
        (CHECKPOINT, "checkpoint"),
        (DAMAGED, "damaged"),
    ];
    let mut x = MARGIN;
    for (colour, text) in legend {
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"62\" width=\"14\" height=\"14\" fill=\"{colour}\" \
             stroke=\"#999999\" stroke-width=\"0.5\"/><text x=\"{}\" y=\"74\">{text}</text>",
            x + 19
        )?;
        x += 32 + 8 * text.len();
    }
    Ok(())
}

fn map(
    out: &mut String,
    view: &LogView,
    step: usize,
    columns: usize,
    cell: usize,
    top: usize,
) -> fmt::Result {
    let order = in_order_of_filling(&view.survey.segments);
    let newest = order.len().saturating_sub(1).max(1) as f64;
    let youth: HashMap<u32, f64> = order
        .iter()
        .enumerate()
        .map(|(rank, segment)| (segment.number, rank as f64 / newest))
        .collect();
    let all: Vec<Option<&Segment>> =
        std::iter::once(None).chain(view.survey.segments.iter().map(Some)).collect();
    // Cells that touch hide the lines between them when they are small.
    let drawn = if cell > 5 { cell - 1 } else { cell };
    for (index, group) in all.chunks(step).enumerate() {
        let colour = colour_of(group, view.survey.segment_bytes, &youth);
        let (x, y) = (MARGIN + index % columns * cell, top + index / columns * cell);
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{drawn}\" height=\"{drawn}\" fill=\"{colour}\"/>"
        )?;
    }
    Ok(())
}

/// The colour of a cell. Of several segments the worst thing is shown, and else their mean.
fn colour_of(group: &[Option<&Segment>], segment_bytes: u64, youth: &HashMap<u32, f64>) -> Colour {
    let segments: Vec<&Segment> = group.iter().copied().flatten().collect();
    let any =
        |states: &[SegmentState]| segments.iter().any(|segment| states.contains(&segment.state));
    if segments.len() < group.len() {
        return ANCHORS;
    }
    if any(&[SegmentState::Damaged, SegmentState::Misplaced]) {
        return DAMAGED;
    }
    if any(&[SegmentState::Checkpoint]) {
        return CHECKPOINT;
    }
    if any(&[SegmentState::Live]) {
        let mean = |of: &dyn Fn(&Segment) -> f64| {
            segments.iter().map(|segment| of(segment)).sum::<f64>() / segments.len() as f64
        };
        let age = |segment: &Segment| youth.get(&segment.number).copied().unwrap_or(0.0);
        return live_colour(mean(&|segment| live_share(segment, segment_bytes)), mean(&age));
    }
    if any(&[SegmentState::Dead]) { DEAD } else { FREE }
}

/// The device's write pattern: which segment was filled when.
fn pattern(out: &mut String, view: &LogView, top: usize) -> fmt::Result {
    let order = in_order_of_filling(&view.survey.segments);
    let bottom = top + PLOT_HEIGHT;
    writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"15\">Write pattern: the segments' last \
         fillings, in order</text>",
        top - 12
    )?;
    writeln!(
        out,
        "<rect x=\"{MARGIN}\" y=\"{top}\" width=\"{INNER}\" height=\"{PLOT_HEIGHT}\" \
         fill=\"none\" stroke=\"#999999\"/>"
    )?;
    writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{}\">oldest filling{}</text><text x=\"{}\" y=\"{}\" \
         text-anchor=\"end\">newest filling{}</text>",
        bottom + 18,
        numbered(order.first()),
        MARGIN + INNER,
        bottom + 18,
        numbered(order.last())
    )?;
    writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">up: segment number, 1 to {}</text>",
        WIDTH / 2,
        bottom + 18,
        view.survey.segments.len()
    )?;
    let last = order.len().saturating_sub(1).max(1) as f64;
    let most = view.survey.segments.len().max(1) as f64;
    let place = |(rank, segment): (usize, &&Segment)| {
        let x = MARGIN as f64 + 4.0 + (INNER - 8) as f64 * rank as f64 / last;
        let height = (PLOT_HEIGHT - 8) as f64 * f64::from(segment.number) / most;
        (x, bottom as f64 - 4.0 - height)
    };
    let step = order.len().div_ceil(MAX_CELLS).max(1);
    let points: Vec<(f64, f64)> = order.iter().enumerate().step_by(step).map(place).collect();
    write!(out, "<polyline fill=\"none\" stroke=\"#b0c4de\" stroke-width=\"0.7\" points=\"")?;
    for (x, y) in &points {
        write!(out, "{x:.1},{y:.1} ")?;
    }
    writeln!(out, "\"/>")?;
    for (x, y) in points {
        writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.8\" fill=\"#1f4e9c\"/>")?;
    }
    Ok(())
}

fn numbered(segment: Option<&&Segment>) -> String {
    segment.and_then(|segment| segment.filling).map_or(String::new(), |it| format!(" ({it})"))
}

/// Text between tags: a label may be anything.
fn escaped(text: &str) -> String {
    let plain = text.chars().filter(|character| !character.is_control());
    plain.fold(String::new(), |mut out, character| {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            other => out.push(other),
        }
        out
    })
}
