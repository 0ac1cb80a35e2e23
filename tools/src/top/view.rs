//! The picture: a line for the machine, a table of volumes, and one of them in detail. Made for 80
//! columns and 24 lines; what is wider or higher gives longer curves.

use super::model::{Flow, View, VolumeView};
use super::tiers;
use crate::status::DaemonState;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, LineGauge, Paragraph, Row, Sparkline, Table, TableState, Wrap};
use std::collections::VecDeque;
use swapfs_format::size::human;

/// Of one volume: bytes a second that came in and went out, the newest first.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Swap-ins.
    pub reads: VecDeque<u64>,
    /// Swap-outs.
    pub writes: VecDeque<u64>,
}

/// More than a terminal has columns.
const HISTORY_LEN: usize = 512;
/// Lines of the table of volumes at most, its heading left out.
const MOST_ROWS: u16 = 8;

impl History {
    /// One more look.
    pub fn add(&mut self, volume: &VolumeView) {
        for (curve, flow) in [(&mut self.reads, volume.read), (&mut self.writes, volume.write)] {
            curve.push_front(flow.bytes_per_s as u64);
            curve.truncate(HISTORY_LEN);
        }
    }
}

/// What the person has chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice {
    /// The volume that is shown in detail.
    pub selected: usize,
    /// Nothing new is looked at.
    pub paused: bool,
    /// There is a keyboard: the last line says what keys do.
    pub keys: bool,
}

/// Draws everything; `history` is the selected volume's.
pub fn draw(frame: &mut Frame<'_>, view: &View, history: &History, choice: Choice) {
    let rows = (view.volumes.len() as u16).clamp(1, MOST_ROWS);
    let [head, table, detail, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(rows + 1),
        Constraint::Fill(1),
        Constraint::Length(u16::from(choice.keys)),
    ])
    .areas(frame.area());
    frame.render_widget(headline(view, choice), head);
    if view.volumes.is_empty() {
        let text = "no volume is up: 'swapfs up' makes one, 'swapfs demo' tries one";
        frame.render_widget(Paragraph::new(text), table);
    } else {
        let mut state = TableState::new().with_selected(choice.selected);
        frame.render_stateful_widget(volumes(view), table, &mut state);
    }
    if let Some(volume) = view.volumes.get(choice.selected) {
        draw_detail(frame, detail, volume, history);
    }
    if choice.keys {
        let keys = " q quit   up/down volume   space pause   + - interval";
        frame.render_widget(Line::from(keys).dim(), foot);
    }
}

fn headline(view: &View, choice: Choice) -> Line<'static> {
    let memory = &view.memory;
    let mut words = vec![
        Span::from("swapfs top").bold(),
        Span::from(format!("  every {:.1} s", view.interval_s)),
        Span::from(format!(
            "  memory {} of {} available",
            human(memory.available_bytes),
            human(memory.total_bytes)
        )),
    ];
    if let Some(percent) = memory.stalled_percent {
        let text = Span::from(format!("  stalled {percent:.1} %"));
        words.push(if percent >= 1.0 { text.red() } else { text });
    }
    if choice.paused {
        words.push("  PAUSED".yellow());
    }
    Line::from(words)
}

fn volumes(view: &View) -> Table<'static> {
    let heading = Style::new().add_modifier(Modifier::REVERSED);
    let rows = view.volumes.iter().map(|volume| {
        let state = match volume.daemon {
            DaemonState::Serving if volume.errors == 0 => Style::new(),
            DaemonState::Serving => Style::new().yellow(),
            _ => Style::new().red(),
        };
        Row::new(vec![
            short_name(&volume.name, 20),
            volume.type_name.clone(),
            human(volume.used_bytes),
            human(volume.size_bytes),
            rate(volume.read.bytes_per_s),
            rate(volume.write.bytes_per_s),
            volume.errors.to_string(),
        ])
        .style(state)
    });
    let widths = [20, 6, 9, 9, 12, 12, 6].map(Constraint::Length);
    Table::new(rows, widths)
        .header(Row::new(["VOLUME", "TYPE", "USED", "SIZE", "IN", "OUT", "ERRORS"]).style(heading))
        .row_highlight_style(Style::new().bold())
}

/// The end of a path says more than its start.
fn short_name(name: &str, columns: usize) -> String {
    let count = name.chars().count();
    if count <= columns {
        return name.to_owned();
    }
    format!("...{}", name.chars().skip(count - columns + 3).collect::<String>())
}

fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", human(bytes_per_s as u64))
}

fn draw_detail(frame: &mut Frame<'_>, area: Rect, volume: &VolumeView, history: &History) {
    let block = Block::bordered().title(format!(" {} ", volume.name));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let levels = volume.levels.len() as u16;
    let tiers = tiers::line_count(&volume.tiers);
    // A line of text, and two of a curve; more where there is more room.
    let curve = 3 + (inside.height.saturating_sub(20 + tiers) / 4).min(6);
    let [reads, writes, table, places, text] = Layout::vertical([
        Constraint::Length(curve),
        Constraint::Length(curve),
        Constraint::Length(tiers),
        Constraint::Length(levels),
        Constraint::Fill(1),
    ])
    .areas(inside);
    draw_flow(frame, reads, "in ", &volume.read, &history.reads);
    draw_flow(frame, writes, "out", &volume.write, &history.writes);
    if tiers > 0 {
        frame.render_widget(tiers::table(&volume.tiers, table.width), table);
    }
    let rows = Layout::vertical(vec![Constraint::Length(1); levels.into()]).split(places);
    for (level, row) in volume.levels.iter().zip(rows.iter()) {
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(44)]).areas(*row);
        let ratio = match level.capacity_bytes {
            Some(capacity) if capacity > 0 => level.used_bytes as f64 / capacity as f64,
            _ => 0.0,
        };
        let of = level.capacity_bytes.map_or_else(String::new, |all| format!(" of {}", human(all)));
        let gauge = LineGauge::default()
            .ratio(ratio.clamp(0.0, 1.0))
            .label(format!("{:<7}{:>3.0} %", level.name, ratio * 100.0))
            .filled_symbol("━")
            .filled_style(Style::new().green());
        frame.render_widget(gauge, left);
        let hits = level.hit_share.map_or_else(
            || "no reads".to_owned(),
            |share| format!("{:.0} % of reads", share * 100.0),
        );
        let text = format!("  {}{of}, {hits}", human(level.used_bytes));
        frame.render_widget(Line::from(text), right);
    }
    let mut lines: Vec<Line<'_>> =
        volume.warnings.iter().map(|warning| Line::from(warning.as_str()).red()).collect();
    lines.extend(volume.summary.iter().map(|line| Line::from(line.as_str())));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), text);
}

fn draw_flow(frame: &mut Frame<'_>, area: Rect, name: &str, flow: &Flow, curve: &VecDeque<u64>) {
    let [line, chart] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let time = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), time);
    let most = curve.iter().copied().max().unwrap_or(0);
    let text = format!(
        "swap-{name} {:>12} {:>6.0}/s  50 % {:>7}  99 % {:>7}  most {}/s",
        rate(flow.bytes_per_s),
        flow.per_s,
        time(flow.p50_us),
        time(flow.p99_us),
        human(most)
    );
    frame.render_widget(Line::from(text), line);
    // The newest at the right end.
    let columns = usize::from(chart.width);
    let mut data: Vec<u64> = curve.iter().copied().take(columns).collect();
    data.resize(columns, 0);
    data.reverse();
    frame.render_widget(Sparkline::default().data(data).style(Style::new().cyan()), chart);
}

/// Microseconds, for people.
pub(super) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}
