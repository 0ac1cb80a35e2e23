//! `swapfs top`: the volumes that are up, live: how full, how fast, how slow.
//!
//! * [`model`]: two looks at the machine, and what happened in between;
//! * [`levels`]: where a volume's pages are;
//! * [`tiers`]: the same, of one over several images;
//! * [`view`]: the picture.

pub mod levels;
pub mod model;
pub mod tiers;
pub mod view;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::volumes;
use model::{Sample, View};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal, backend::TestBackend};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use view::{Choice, History};

/// How often keys and signals are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// The shortest and the longest interval that keys choose.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// Of a picture that is printed, unless the environment says otherwise.
const COLUMNS: u16 = 80;
const LINES: u16 = 24;

/// What is asked for.
#[derive(Debug)]
pub struct TopRequest {
    /// Image, mount point, device or UUID of the one volume that is shown; `None`: all.
    pub volume: Option<PathBuf>,
    /// Between two looks.
    pub interval: Duration,
}

impl TopRequest {
    fn look(&self) -> Result<Sample, Failure> {
        let mut sample = Sample::take()?;
        if let Some(name) = &self.volume {
            let all = volumes::discover()?;
            let mount = volumes::select(&all, name)?.mount.clone();
            sample.status.volumes.retain(|volume| volume.mount == mount);
        }
        Ok(sample)
    }
}

/// Two looks, and what happened in between.
///
/// # Errors
/// If `/proc` or `/sys` can't be read, or the volume is not up; if it is interrupted.
pub fn once(request: &TopRequest, interrupt: &Interrupt) -> Result<View, Failure> {
    let before = request.look()?;
    let until = before.taken + request.interval;
    while Instant::now() < until {
        interrupt.check("the second look")?;
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    Ok(View::between(&before, &request.look()?))
}

/// The picture as text, each volume's detail below the one before.
#[must_use]
pub fn printed(view: &View) -> String {
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let columns: u16 = columns.unwrap_or(COLUMNS).clamp(40, 400);
    let mut text = String::new();
    for selected in 0..view.volumes.len().max(1) {
        let mut history = History::default();
        if let Some(volume) = view.volumes.get(selected) {
            history.add(volume);
        }
        let choice = Choice { selected, ..Choice::default() };
        let picture = picture(view, &history, choice, (columns, LINES));
        // The table of all volumes once.
        let skip = if selected == 0 { 0 } else { 2 + view.volumes.len().min(8) };
        text.extend(picture.lines().skip(skip).flat_map(|line| [line.trim_end(), "\n"]));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The picture of a terminal of that size, line by line.
fn picture(view: &View, history: &History, choice: Choice, (columns, lines): (u16, u16)) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, lines));
    let Ok(_) = terminal.draw(|frame| view::draw(frame, view, history, choice));
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(columns));
    rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
}

/// Shows it until the person wants no more.
///
/// # Errors
/// As [`once`]; if standard output is no terminal.
pub fn live(request: &TopRequest, interrupt: &Interrupt) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() {
        return Err(Failure::new(
            "standard output",
            "is no terminal: 'swapfs top --once' prints the picture, '--json' the numbers",
        ));
    }
    // Before the screen changes, where an error would not be seen.
    let first = request.look()?;
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::os("terminal", "use", &error))?;
    let outcome = run(&mut terminal, request, interrupt, first);
    ratatui::restore();
    outcome
}

fn run(
    terminal: &mut DefaultTerminal,
    request: &TopRequest,
    interrupt: &Interrupt,
    first: Sample,
) -> Result<(), Failure> {
    let broken = |error| Failure::os("terminal", "use", &error);
    let mut interval = request.interval;
    let mut choice = Choice { keys: true, ..Choice::default() };
    let mut histories: HashMap<String, History> = HashMap::new();
    let mut before = first;
    let mut view = View::between(&before, &before);
    loop {
        choice.selected = choice.selected.min(view.volumes.len().saturating_sub(1));
        let selected = view.volumes.get(choice.selected);
        let history = selected.and_then(|volume| histories.get(&volume.name));
        let empty = History::default();
        terminal
            .draw(|frame| view::draw(frame, &view, history.unwrap_or(&empty), choice))
            .map_err(broken)?;
        if interrupt.is_raised() {
            return Ok(());
        }
        if event::poll(LOOK).map_err(broken)?
            && let Event::Key(key) = event::read().map_err(broken)?
            && key.kind != KeyEventKind::Release
        {
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if control => return Ok(()),
                KeyCode::Char(' ') => choice.paused = !choice.paused,
                KeyCode::Char('+') => interval = (interval * 2).min(INTERVALS.1),
                KeyCode::Char('-') => interval = (interval / 2).max(INTERVALS.0),
                KeyCode::Up | KeyCode::Char('k') => {
                    choice.selected = choice.selected.saturating_sub(1);
                }
                KeyCode::Down | KeyCode::Char('j') => choice.selected += 1,
                _ => {}
            }
        }
        if choice.paused || before.taken.elapsed() < interval {
            continue;
        }
        let after = request.look()?;
        view = View::between(&before, &after);
        for volume in &view.volumes {
            histories.entry(volume.name.clone()).or_default().add(volume);
        }
        before = after;
    }
}

#[cfg(test)]
mod tests;
