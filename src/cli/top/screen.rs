//! What is on the screen: keys come in, lines go out. No I/O.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::time::Duration;

use crate::machine::load::Load;
use crate::output::table::View;

/// The last line.
const KEYS: &str = "sort by: c CPU  m memory  t tasks  i IO  n network  N name   r reverse   arrows scroll   q quit";

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Sort(By),
    Reverse,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Quit,
}

/// What the machines are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Cpu,
    Memory,
    Tasks,
    Io,
    Network,
    Name,
}

impl By {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Tasks => "tasks",
            Self::Io => "IO",
            Self::Network => "network",
            Self::Name => "name",
        }
    }

    /// The most first, and what is unknown last; by name in the order of the alphabet.
    fn compare(self, a: &Load, b: &Load, reverse: bool) -> Ordering {
        let number = |load: &Load| match self {
            Self::Cpu => load.cpu,
            Self::Memory => load.memory,
            Self::Tasks => load.tasks,
            Self::Io => sum(load.io_read, load.io_write),
            Self::Network => sum(load.net_rx, load.net_tx),
            Self::Name => None,
        };
        let turn = |order: Ordering| if reverse { order.reverse() } else { order };
        if self == Self::Name {
            return turn(a.name.cmp(&b.name));
        }
        match (number(a), number(b)) {
            (Some(a), Some(b)) => turn(b.cmp(&a)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        }
    }
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (None, None) => None,
        (one, other) => Some(one.unwrap_or(0).saturating_add(other.unwrap_or(0))),
    }
}

/// Keys out of the bytes that a terminal sends: those of one key may come in several parts.
#[derive(Debug, Default)]
pub(super) struct Typed(Vec<u8>);

impl Typed {
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Key> {
        self.0.extend_from_slice(bytes);
        let mut keys = Vec::new();
        while let Some((length, key)) = first(&self.0) {
            self.0.drain(..length);
            keys.extend(key);
        }
        keys
    }
}

/// How many bytes the first key has, and what it asks for; `None` if it is not whole yet.
fn first(bytes: &[u8]) -> Option<(usize, Option<Key>)> {
    let plain = |byte: &u8| match byte {
        b'c' => Some(Key::Sort(By::Cpu)),
        b'm' => Some(Key::Sort(By::Memory)),
        b't' => Some(Key::Sort(By::Tasks)),
        b'i' => Some(Key::Sort(By::Io)),
        b'n' => Some(Key::Sort(By::Network)),
        b'N' => Some(Key::Sort(By::Name)),
        b'r' => Some(Key::Reverse),
        b'q' | 0x03 => Some(Key::Quit),
        _ => None,
    };
    match bytes {
        [] | [0x1b] => None,
        // A cursor key: parameters, then one letter or `~`.
        [0x1b, b'[' | b'O', rest @ ..] => {
            let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte));
            let Some(end) = end else {
                // No key is that long.
                return (rest.len() > 16).then_some((bytes.len(), None));
            };
            let key = match (&rest[..end], rest[end]) {
                ([], b'A') => Some(Key::Up),
                ([], b'B') => Some(Key::Down),
                ([], b'H') | (b"1" | b"7", b'~') => Some(Key::Home),
                ([], b'F') | (b"4" | b"8", b'~') => Some(Key::End),
                (b"5", b'~') => Some(Key::PageUp),
                (b"6", b'~') => Some(Key::PageDown),
                _ => None,
            };
            Some((end + 3, key))
        }
        [0x1b, ..] => Some((1, None)),
        [byte, ..] => Some((1, plain(byte))),
    }
}

/// What is seen, and how.
#[derive(Debug)]
pub(super) struct Screen {
    /// `None` for the order of `--sort`.
    by: Option<By>,
    reverse: bool,
    /// How many machines are above what is seen.
    above: usize,
    /// Machines that fit.
    page: usize,
    /// How wide each column has been: it does not jump about.
    widths: Vec<usize>,
}

impl Screen {
    pub(super) fn new(by: Option<By>) -> Self {
        Self {
            by,
            reverse: false,
            above: 0,
            page: 1,
            widths: Vec::new(),
        }
    }

    /// Does what a key asks for; false if it is the end.
    pub(super) fn press(&mut self, key: Key) -> bool {
        match key {
            Key::Sort(by) => (self.by, self.reverse) = (Some(by), false),
            Key::Reverse => self.reverse = !self.reverse,
            Key::Up => self.above = self.above.saturating_sub(1),
            Key::Down => self.above = self.above.saturating_add(1),
            Key::PageUp => self.above = self.above.saturating_sub(self.page),
            Key::PageDown => self.above = self.above.saturating_add(self.page),
            Key::Home => self.above = 0,
            Key::End => self.above = usize::MAX,
            Key::Quit => return false,
        }
        true
    }

    /// The screen's bytes: that many rows and columns of a terminal, which is drawn over.
    pub(super) fn draw(
        &mut self,
        view: &View<'_, Load>,
        loads: &[Load],
        every: Duration,
        (rows, columns): (usize, usize),
    ) -> String {
        let lines = self.lines(view, loads, every, rows);
        let mut text = "\x1b[H".to_owned();
        for (number, line) in lines.iter().take(rows).enumerate() {
            let shown: String = line.chars().take(columns).collect();
            // Without a line break behind the last one: it would scroll.
            text += if number > 0 { "\r\n" } else { "" };
            if number == 1 {
                let _ = write!(text, "\x1b[7m{shown:columns$}\x1b[0m");
            } else {
                text += &shown;
                text += "\x1b[K";
            }
        }
        text + "\x1b[J"
    }

    fn lines(&mut self, view: &View<'_, Load>, loads: &[Load], every: Duration, rows: usize) -> Vec<String> {
        let mut loads = view.arrange(loads.to_vec());
        match self.by {
            Some(by) => loads.sort_by(|a, b| by.compare(a, b, self.reverse)),
            None if self.reverse => loads.reverse(),
            None => {}
        }
        let headers = view.headers();
        let cells: Vec<Vec<String>> = loads.iter().map(|load| view.cells(load)).collect();
        self.widths.resize(headers.len(), 0);
        for line in cells.iter().chain([&headers]) {
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        let line = |cells: &Vec<String>| {
            let aligned = cells.iter().zip(&headers).zip(&self.widths);
            let cells: Vec<String> = aligned
                .map(|((cell, header), width)| {
                    if header == "NAME" {
                        format!("{cell:width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
            cells.join("  ")
        };
        self.page = rows.saturating_sub(3).max(1);
        self.above = self.above.min(loads.len().saturating_sub(self.page));
        let seen = cells.iter().skip(self.above).take(self.page).map(line);
        let body: Vec<String> = seen.collect();
        let mut lines = vec![self.title(loads.len(), every), line(&headers)];
        lines.extend(body);
        lines.resize(rows.saturating_sub(1), String::new());
        lines.push(KEYS.to_owned());
        lines
    }

    fn title(&self, count: usize, every: Duration) -> String {
        let machines = match count {
            0 => "no machines".to_owned(),
            1 => "1 machine".to_owned(),
            count => format!("{count} machines"),
        };
        let order = self
            .by
            .map_or_else(String::new, |by| format!(", sorted by {}", by.as_str()));
        let reversed = if self.reverse { ", reversed" } else { "" };
        let part = if count > self.page {
            let last = (self.above + self.page).min(count);
            format!(", {} to {last} shown", self.above + 1)
        } else {
            String::new()
        };
        format!(
            "machinist top: {machines}, every {} s{order}{reversed}{part}",
            every.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::COLUMNS;
    use super::Key::{Down, End, Home, PageDown, PageUp, Quit, Reverse, Up};
    use super::*;
    use crate::output::Voice;
    use crate::output::table::TableArgs;

    fn load(name: &str, cpu: Option<u64>, memory: Option<u64>) -> Load {
        Load {
            name: name.to_owned(),
            cpu,
            memory,
            ..Load::default()
        }
    }

    fn view() -> View<'static, Load> {
        let args = TableArgs {
            columns: vec!["name".into(), "cpu".into()],
            ..TableArgs::default()
        };
        View::new(COLUMNS, &args, Voice::default()).unwrap()
    }

    fn lines(screen: &mut Screen, loads: &[Load], rows: usize) -> Vec<String> {
        screen.lines(&view(), loads, Duration::from_secs(1), rows)
    }

    /// The machines that are seen, in their order.
    fn names(screen: &mut Screen, loads: &[Load], rows: usize) -> String {
        let lines = lines(screen, loads, rows);
        let body = &lines[2..lines.len() - 1];
        body.iter().filter_map(|line| line.split(' ').next()).collect()
    }

    #[test]
    fn keys_come_in_any_parts() {
        let all = b"cmtinNr\x1b[A\x1b[B\x1bOA\x1b[5~\x1b[6~\x1b[H\x1b[F\x1b[1~\x1b[4~\x1b[1;5A\x1bxz\x1bq";
        let whole = Typed::default().take(all);
        let mut typed = Typed::default();
        let parts: Vec<Key> = all.chunks(1).flat_map(|part| typed.take(part)).collect();
        assert_eq!(whole, parts);
        assert_eq!(whole[0], Key::Sort(By::Cpu));
        assert_eq!(whole[5], Key::Sort(By::Name));
        assert_eq!(
            whole[6..],
            [Reverse, Up, Down, Up, PageUp, PageDown, Home, End, Home, End, Quit]
        );
        assert_eq!(Typed::default().take(b"\x03"), [Quit]);
        // What never ends is thrown away.
        let mut typed = Typed::default();
        typed.take(b"\x1b[");
        typed.take(&[b'1'; 40]);
        assert_eq!(typed.take(b"q"), [Quit]);
    }

    #[test]
    fn machines_are_sorted_and_what_is_unknown_is_last() {
        let loads = [
            load("a", Some(5), Some(1)),
            load("b", None, Some(9)),
            load("c", Some(7), None),
        ];
        let mut screen = Screen::new(Some(By::Cpu));
        assert_eq!(names(&mut screen, &loads, 24), "cab");
        screen.press(Key::Reverse);
        assert_eq!(names(&mut screen, &loads, 24), "acb");
        screen.press(Key::Sort(By::Memory));
        assert_eq!(names(&mut screen, &loads, 24), "bac");
        screen.press(Key::Sort(By::Name));
        assert_eq!(names(&mut screen, &loads, 24), "abc");
        screen.press(Key::Reverse);
        assert_eq!(names(&mut screen, &loads, 24), "cba");
        assert!(!screen.press(Key::Quit));
    }

    #[test]
    fn it_scrolls_no_farther_than_there_is() {
        let loads: Vec<Load> = ('a'..='j').map(|name| load(&name.to_string(), None, None)).collect();
        let mut screen = Screen::new(Some(By::Name));
        let mut after = |keys: &[Key]| {
            for key in keys {
                screen.press(*key);
            }
            names(&mut screen, &loads, 6)
        };
        assert_eq!(after(&[]), "abc");
        assert_eq!(after(&[Key::Down]), "bcd");
        assert_eq!(after(&[Key::PageDown]), "efg");
        assert_eq!(after(&[Key::End]), "hij");
        assert_eq!(after(&[Key::Down, Key::Down]), "hij");
        assert_eq!(after(&[Key::Up]), "ghi");
        assert_eq!(after(&[Key::Home]), "abc");
        let title = lines(&mut screen, &loads, 6)[0].clone();
        assert_eq!(
            title,
            "machinist top: 10 machines, every 1 s, sorted by name, 1 to 3 shown"
        );
    }

    #[test]
    fn it_fits_any_terminal() {
        let loads: Vec<Load> = ('a'..='j').map(|name| load(&name.to_string(), None, None)).collect();
        for rows in 0..8 {
            for columns in [0, 1, 7, 200] {
                let mut screen = Screen::new(None);
                let text = screen.draw(&view(), &loads, Duration::from_secs(1), (rows, columns));
                assert!(text.matches('\n').count() < rows.max(1), "{rows} {columns}: {text:?}");
                for line in text.split("\r\n") {
                    let plain = anstream::adapter::strip_str(line).to_string();
                    assert!(plain.chars().count() <= columns, "{rows} {columns}: {plain:?}");
                }
            }
        }
        let mut screen = Screen::new(None);
        let shown = lines(&mut screen, &[load("a", Some(125_000), None)], 5);
        assert_eq!(shown[1..3], ["NAME    CPU", "a     12.5%"]);
    }
}
