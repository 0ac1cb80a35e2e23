//! Hit rates as a picture: one panel for each trace, one line for each policy.

use crate::compare::{Policy, Row, Watermarks};
use crate::trace::Trace;
use std::fmt::Write;

/// In pixels.
const PANEL_WIDTH: f64 = 420.0;
const PANEL_HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 110.0;
/// Between panels: titles and the numbers at the axes.
const GAP_X: f64 = 70.0;
const GAP_Y: f64 = 90.0;
const COLUMNS: usize = 2;

/// Colour and dashes. Colours are those of Okabe and Ito, which the colour-blind can tell apart;
/// the dashes say the same again.
fn look(policy: Policy) -> (&'static str, &'static str, f64) {
    match policy {
        Policy::Optimum => ("#555555", "", 1.5),
        Policy::Always => ("#d55e00", "", 2.5),
        Policy::Second => ("#0072b2", "", 2.5),
        Policy::Lru => ("#000000", "7 4", 2.0),
        Policy::LruFull => ("#000000", "2 3", 1.5),
        Policy::Clock => ("#009e73", "9 3 2 3", 1.5),
        Policy::Fifo => ("#cc79a7", "9 3 2 3", 1.5),
        Policy::Random => ("#b8860b", "2 3", 1.5),
    }
}

/// As in the table, but for who has not read the options.
fn label(policy: Policy) -> &'static str {
    match policy {
        Policy::Optimum => "Belady's optimum",
        Policy::Always => "tier, promote=always",
        Policy::Second => "tier, promote=second",
        Policy::Lru => "exact LRU, same watermarks",
        Policy::LruFull => "exact LRU, no watermarks",
        Policy::Clock => "FIFO with a second chance",
        Policy::Fifo => "FIFO",
        Policy::Random => "random",
    }
}

/// The whole picture, as SVG 1.1.
pub(crate) fn svg(panels: &[(&Trace, Vec<Row>)], watermarks: Watermarks) -> String {
    let mut svg = String::new();
    // Writing to a string can't fail.
    let _ = write(&mut svg, panels, watermarks);
    svg
}

fn write(
    svg: &mut String,
    panels: &[(&Trace, Vec<Row>)],
    watermarks: Watermarks,
) -> std::fmt::Result {
    let lines = panels.len().div_ceil(COLUMNS) as f64;
    let width = LEFT + COLUMNS as f64 * (PANEL_WIDTH + GAP_X) - GAP_X + 30.0;
    let height = TOP + lines * (PANEL_HEIGHT + GAP_Y) - 20.0;
    // White below it, so that it is the same on a dark page.
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>swapfs: reads that found their page in the top tier</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\">Swap-ins that found their page in the top \
         tier (watermarks {} and {} %)</text>",
        watermarks.high_percent, watermarks.low_percent
    )?;
    for (index, policy) in Policy::ALL.into_iter().enumerate() {
        let (x, y) = (LEFT + (index % 4) as f64 * 235.0, 46.0 + (index / 4) as f64 * 20.0);
        let (text_x, text_y) = (x + 36.0, y + 4.0);
        let text = label(policy);
        writeln!(
            svg,
            "<path d=\"M{x} {y}h30\" {}/><text x=\"{text_x}\" y=\"{text_y}\">{text}</text>",
            stroke(policy)
        )?;
    }
    for (index, (trace, rows)) in panels.iter().enumerate() {
        let x = LEFT + (index % COLUMNS) as f64 * (PANEL_WIDTH + GAP_X);
        let y = TOP + (index / COLUMNS) as f64 * (PANEL_HEIGHT + GAP_Y);
        writeln!(svg, "<g transform=\"translate({x} {y})\">")?;
        panel(svg, trace, rows)?;
        writeln!(svg, "</g>")?;
    }
    svg.push_str("</svg>\n");
    Ok(())
}

fn stroke(policy: Policy) -> String {
    let (colour, dashes, width) = look(policy);
    format!(
        "fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{}\"",
        if dashes.is_empty() { "none" } else { dashes }
    )
}

fn panel(svg: &mut String, trace: &Trace, rows: &[Row]) -> std::fmt::Result {
    let name: String = trace.name.chars().filter(|c| !"<>&\"".contains(*c)).collect();
    writeln!(
        svg,
        "<text y=\"-8\" font-size=\"14\" font-weight=\"bold\">{name}</text>\n\
         <rect width=\"{PANEL_WIDTH}\" height=\"{PANEL_HEIGHT}\" fill=\"none\" stroke=\"#444\"/>"
    )?;
    for percent in (0..=100).step_by(20) {
        let y = y_of(f64::from(percent) / 100.0);
        writeln!(
            svg,
            "<path d=\"M0 {y:.1}h{PANEL_WIDTH}\" stroke=\"#ddd\"/><text x=\"-6\" y=\"{:.1}\" \
             text-anchor=\"end\">{percent} %</text>",
            y + 4.0
        )?;
    }
    let most = rows.iter().map(|row| row.room_percent).max().unwrap_or(1);
    let x_of = |percent: u32| f64::from(percent) / f64::from(most) * PANEL_WIDTH;
    for percent in (0..=most).step_by(if most > 50 { 10 } else { 5 }) {
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{percent}</text>",
            x_of(percent),
            PANEL_HEIGHT + 17.0
        )?;
    }
    writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">room in the top tier, % of the pages</text>",
        PANEL_WIDTH / 2.0,
        PANEL_HEIGHT + 36.0
    )?;
    // The tier's own lines lie on top.
    for policy in Policy::ALL.into_iter().rev() {
        let points = rows.iter().filter_map(|row| {
            let result = row.of(policy)?;
            Some(format!("{:.1},{:.1}", x_of(row.room_percent), y_of(result.read_hit_rate)))
        });
        let points: Vec<String> = points.collect();
        writeln!(svg, "<polyline points=\"{}\" {}/>", points.join(" "), stroke(policy))?;
    }
    Ok(())
}

fn y_of(rate: f64) -> f64 {
    (1.0 - rate) * PANEL_HEIGHT
}
