//! A trace as a picture: time from left to right, place in the image from bottom to top.
//!
//! Operations are gathered into a raster, and each row of it is drawn as runs of cells that look
//! the same. So the picture has at most some hundred KiB, however long the trace is.

use super::report::percent;
use super::summary::Summary;
use std::fmt::Write;
use swapfs_format::size::human;
use swapfs_format::trace::{Record, RecordKind};

const COLUMNS: usize = 320;
const ROWS: usize = 240;
/// Of the whole picture, and of the raster in it, in pixels.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 640.0;
const LEFT: f64 = 100.0;
const TOP: f64 = 90.0;
const PLOT_WIDTH: f64 = 830.0;
const PLOT_HEIGHT: f64 = 490.0;
/// About so many marks at each axis.
const MARKS: u64 = 8;
/// How opaque cells are in which little happened, in which more did, and in which most did.
const OPACITIES: [&str; 3] = ["0.4", "0.7", "1"];

/// What a cell shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Write,
    Read,
    Both,
    Discard,
}

impl Look {
    const ALL: [Look; 4] = [Look::Write, Look::Read, Look::Both, Look::Discard];

    fn colour(self) -> &'static str {
        match self {
            Look::Write => "#1b5fa8",
            Look::Read => "#e07b00",
            Look::Both => "#7b2f91",
            Look::Discard => "#9a9a9a",
        }
    }
}

/// Bytes of each kind that fall into a cell.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    read: u64,
    write: u64,
    discard: u64,
}

impl Cell {
    /// Discards are shown only where nothing else is: they can cover everything.
    fn look(&self) -> Option<(Look, u64)> {
        match (self.write, self.read, self.discard) {
            (0, 0, 0) => None,
            (0, 0, discard) => Some((Look::Discard, discard)),
            (write, 0, _) => Some((Look::Write, write)),
            (0, read, _) => Some((Look::Read, read)),
            (write, read, _) => Some((Look::Both, write.saturating_add(read))),
        }
    }
}

/// The raster.
#[derive(Debug)]
pub(super) struct Picture {
    cells: Vec<Cell>,
    first_ns: u64,
    span_ns: u64,
    low_bytes: u64,
    span_bytes: u64,
}

impl Picture {
    /// An empty one, for the times and places of the trace that `summary` is of.
    pub(super) fn new(summary: &Summary) -> Picture {
        let counts = &summary.counts;
        Picture {
            cells: vec![Cell::default(); COLUMNS * ROWS],
            first_ns: counts.first_ns,
            span_ns: counts.last_ns.saturating_sub(counts.first_ns).max(1),
            low_bytes: counts.low_bytes,
            span_bytes: counts.high_bytes.saturating_sub(counts.low_bytes).max(1),
        }
    }

    pub(super) fn add(&mut self, record: &Record) {
        if !matches!(record.kind, RecordKind::Read | RecordKind::Write | RecordKind::Discard)
            || record.length_bytes == 0
        {
            return;
        }
        // Records may have come since the summary was made.
        let since_ns = record.start_ns.saturating_sub(self.first_ns);
        let start = record.offset_bytes.saturating_sub(self.low_bytes);
        let end = start.saturating_add(record.length_bytes).min(self.span_bytes);
        if since_ns > self.span_ns || start >= end {
            return;
        }
        let column = scaled(since_ns, self.span_ns, COLUMNS).min(COLUMNS - 1);
        let rows = scaled(start, self.span_bytes, ROWS)..=scaled(end - 1, self.span_bytes, ROWS);
        let share = (record.length_bytes / rows.clone().count().max(1) as u64).max(1);
        for row in rows {
            let cell = &mut self.cells[row * COLUMNS + column];
            let bytes = match record.kind {
                RecordKind::Read => &mut cell.read,
                RecordKind::Write => &mut cell.write,
                _ => &mut cell.discard,
            };
            *bytes = bytes.saturating_add(share);
        }
    }

    /// The whole picture, as SVG 1.1.
    pub(super) fn svg(&self, summary: &Summary) -> String {
        let mut svg = String::new();
        // Writing to a string can't fail.
        let _ = self.write_svg(&mut svg, summary);
        svg
    }

    fn write_svg(&self, svg: &mut String, summary: &Summary) -> std::fmt::Result {
        let file = escaped(&summary.file.display().to_string());
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <title>swapfs trace of {file}</title>\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"28\" font-size=\"17\">swapfs trace of {file}</text>\n\
             <text x=\"{LEFT}\" y=\"50\" fill=\"#444\">{}</text>",
            escaped(&subtitle(summary))
        )?;
        legend(svg, summary)?;
        writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{PLOT_WIDTH}\" height=\"{PLOT_HEIGHT}\" \
             fill=\"none\" stroke=\"#444\"/>"
        )?;
        if summary.request_bytes.is_empty() {
            let (x, y) = (LEFT + PLOT_WIDTH / 2.0, TOP + PLOT_HEIGHT / 2.0);
            writeln!(
                svg,
                "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">no reads, writes or discards</text>"
            )?;
        } else {
            self.axes(svg)?;
            self.raster(svg)?;
        }
        svg.push_str("</svg>\n");
        Ok(())
    }

    /// One path for each look and opacity, in units of cells, the first row at the bottom.
    fn raster(&self, svg: &mut String) -> std::fmt::Result {
        let looks: Vec<Option<(Look, u64)>> = self.cells.iter().map(Cell::look).collect();
        let most = |look: Look| {
            looks
                .iter()
                .flatten()
                .filter(|(other, _)| *other == look)
                .map(|(_, bytes)| *bytes)
                .max()
        };
        let most = Look::ALL.map(|look| most(look).unwrap_or(0));
        let shown = |cell: &Option<(Look, u64)>| {
            cell.map(|(look, bytes)| (look, level(bytes, most[look as usize])))
        };
        let mut paths = vec![String::new(); Look::ALL.len() * OPACITIES.len()];
        for (row, cells) in looks.chunks(COLUMNS).enumerate() {
            let mut column = 0;
            for run in cells.chunk_by(|one, other| shown(one) == shown(other)) {
                if let Some((look, level)) = run.first().and_then(shown) {
                    let path = &mut paths[look as usize * OPACITIES.len() + level];
                    write!(path, "M{column} {row}h{}", run.len())?;
                }
                column += run.len();
            }
        }
        writeln!(
            svg,
            "<g transform=\"translate({LEFT} {}) scale({} {}) translate(0 0.5)\" \
             shape-rendering=\"crispEdges\">",
            TOP + PLOT_HEIGHT,
            PLOT_WIDTH / COLUMNS as f64,
            -PLOT_HEIGHT / ROWS as f64
        )?;
        for (index, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            let colour = Look::ALL[index / OPACITIES.len()].colour();
            let opacity = OPACITIES[index % OPACITIES.len()];
            writeln!(svg, "<path stroke=\"{colour}\" stroke-opacity=\"{opacity}\" d=\"{path}\"/>")?;
        }
        svg.push_str("</g>\n");
        Ok(())
    }

    fn axes(&self, svg: &mut String) -> std::fmt::Result {
        let bottom = TOP + PLOT_HEIGHT;
        let (unit, unit_ns) = match self.span_ns {
            0..2000 => ("ns", 1),
            2000..2_000_000 => ("us", 1000),
            2_000_000..2_000_000_000 => ("ms", 1_000_000),
            _ => ("s", 1_000_000_000),
        };
        let step_ns = decimal_step(self.span_ns);
        for mark_ns in (0..=self.span_ns).step_by(step_ns as usize) {
            let x = LEFT + mark_ns as f64 / self.span_ns as f64 * PLOT_WIDTH;
            let label = mark_ns as f64 / unit_ns as f64;
            writeln!(
                svg,
                "<path d=\"M{x:.1} {bottom}v5\" stroke=\"#444\"/><text x=\"{x:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{label}</text>",
                bottom + 19.0
            )?;
        }
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">time since the first operation, {unit}\
             </text>",
            LEFT + PLOT_WIDTH / 2.0,
            bottom + 40.0
        )?;
        let step_bytes = binary_step(self.span_bytes);
        let high_bytes = self.low_bytes.saturating_add(self.span_bytes);
        let mut mark_bytes = self.low_bytes.checked_next_multiple_of(step_bytes);
        while let Some(mark) = mark_bytes.filter(|&mark| mark <= high_bytes) {
            let part = (mark - self.low_bytes) as f64 / self.span_bytes as f64;
            let y = bottom - part * PLOT_HEIGHT;
            writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}h-5\" stroke=\"#444\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                exact_size(mark, step_bytes)
            )?;
            mark_bytes = mark.checked_add(step_bytes);
        }
        let y = TOP + PLOT_HEIGHT / 2.0;
        writeln!(
            svg,
            "<text x=\"20\" y=\"{y}\" text-anchor=\"middle\" transform=\"rotate(-90 20 {y})\">\
             place in the image</text>"
        )
    }
}

/// Which of `count` equal parts of `whole` the number lies in.
fn scaled(number: u64, whole: u64, count: usize) -> usize {
    (u128::from(number) * count as u128 / u128::from(whole)) as usize
}

/// By powers of 16 below the cell with most.
fn level(bytes: u64, most: u64) -> usize {
    match most / bytes.max(1) {
        0..16 => 2,
        16..256 => 1,
        _ => 0,
    }
}

fn subtitle(summary: &Summary) -> String {
    let mut text = format!(
        "{} written, {} read; writes: {}",
        human(summary.bytes.write),
        human(summary.bytes.read),
        summary.writes_text()
    );
    if let Some(amplification) = summary.write_amplification {
        let _ = write!(text, "; write amplification {amplification:.2}");
    }
    if summary.lost_operations > 0 {
        let share = percent(summary.lost_share());
        let _ = write!(text, "; {share} of the operations are missing");
    }
    text
}

fn legend(svg: &mut String, summary: &Summary) -> std::fmt::Result {
    let operations = &summary.operations;
    let texts = [
        format!("writes ({})", operations.write),
        format!("reads ({})", operations.read),
        "both".to_owned(),
        format!("discards ({})", operations.discard),
    ];
    for (index, (look, text)) in Look::ALL.into_iter().zip(texts).enumerate() {
        let x = LEFT + index as f64 * 160.0;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"64\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"74\">{text}</text>",
            look.colour(),
            x + 17.0
        )?;
    }
    Ok(())
}

/// 1, 2 or 5 times a power of ten, so that there are [`MARKS`] or some more.
fn decimal_step(span: u64) -> u64 {
    let least = (span / MARKS).max(1);
    let mut power = 1u64;
    loop {
        for step in [power, 2 * power, 5 * power] {
            if step >= least {
                return step;
            }
        }
        match power.checked_mul(10).filter(|power| *power < u64::MAX / 10) {
            Some(next) => power = next,
            None => return least,
        }
    }
}

fn binary_step(span: u64) -> u64 {
    (span / MARKS).max(1).checked_next_power_of_two().unwrap_or(1 << 63)
}

/// A multiple of `step`, a power of two, in the largest unit that leaves no fraction of a step.
fn exact_size(bytes: u64, step: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (step.ilog2() / 10) as usize;
    format!("{} {}", bytes >> (10 * unit), UNITS[unit])
}

/// For XML text.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no way to write these.
            character if character.is_control() => escaped.push('?'),
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            character => escaped.push(character),
        }
    }
    escaped
}
