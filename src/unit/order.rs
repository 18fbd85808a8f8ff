//! Which machine starts after which: circles, and the order that comes out.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::MachineName;

/// Of each machine those that start before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph(BTreeMap<MachineName, BTreeSet<MachineName>>);

impl Graph {
    /// Notes that `name` starts after `other`.
    pub fn add(&mut self, name: &MachineName, other: &MachineName) {
        self.0.entry(name.clone()).or_default().insert(other.clone());
    }

    /// Takes that back.
    pub fn remove(&mut self, name: &MachineName, other: &MachineName) {
        if let Some(before) = self.0.get_mut(name) {
            before.remove(other);
        }
    }

    /// The machines that start right before `name`.
    pub fn before(&self, name: &MachineName) -> impl Iterator<Item = &MachineName> {
        self.0.get(name).into_iter().flatten()
    }

    /// A circle that `name` is part of, from it to it.
    #[must_use]
    pub fn circle(&self, name: &MachineName) -> Option<Vec<MachineName>> {
        let mut seen = BTreeSet::new();
        let mut paths = vec![vec![name.clone()]];
        while let Some(path) = paths.pop() {
            for before in path.last().into_iter().flat_map(|last| self.before(last)) {
                let mut longer = path.clone();
                longer.push(before.clone());
                if before == name {
                    return Some(longer);
                }
                if seen.insert(before.clone()) {
                    paths.push(longer);
                }
            }
        }
        None
    }

    /// The names in turns: all of a turn may start at the same time, after those of the turns before. What is in a circle comes
    /// last.
    #[must_use]
    pub fn turns(&self, names: &[MachineName]) -> Vec<Vec<MachineName>> {
        let mut left: BTreeSet<&MachineName> = names.iter().collect();
        let mut turns = Vec::new();
        while !left.is_empty() {
            let waits = |name: &MachineName| self.before(name).any(|before| left.contains(before));
            let mut turn: Vec<MachineName> = left.iter().filter(|name| !waits(name)).map(|n| (*n).clone()).collect();
            if turn.is_empty() {
                turn = left.iter().map(|name| (*name).clone()).collect();
            }
            left.retain(|name| !turn.contains(name));
            turns.push(turn);
        }
        turns
    }

    /// The other way round: as machines stop.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let mut reversed = Self::default();
        for (name, before) in &self.0 {
            for other in before {
                reversed.add(other, name);
            }
        }
        reversed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().unwrap()
    }

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::default();
        for (after, before) in edges {
            graph.add(&name(after), &name(before));
        }
        graph
    }

    #[test]
    fn turns_follow_each_other() {
        let names = ["a", "b", "c", "d", "e"].map(name);
        let turns = |graph: &Graph| {
            let turns = graph.turns(&names);
            turns
                .iter()
                .map(|turn| turn.iter().map(MachineName::as_str).collect::<String>())
                .collect::<Vec<_>>()
        };
        let all = graph(&[("a", "c"), ("b", "a"), ("d", "c"), ("d", "elsewhere")]);
        assert_eq!(turns(&all), ["ce", "ad", "b"]);
        assert_eq!(turns(&all.reversed()), ["bde", "a", "c"]);
        assert_eq!(turns(&graph(&[("a", "b"), ("b", "a"), ("c", "a")])), ["de", "abc"]);
    }

    #[test]
    fn circles_are_found() {
        let found = graph(&[("a", "b"), ("b", "c"), ("c", "a"), ("a", "d"), ("e", "a")]);
        let circle = |from: &str| {
            let circle = found.circle(&name(from));
            circle.map(|names| names.iter().map(MachineName::as_str).collect::<String>())
        };
        assert_eq!(circle("a").as_deref(), Some("abca"));
        assert_eq!(circle("e"), None);
        assert_eq!(
            graph(&[("a", "a")]).circle(&name("a")),
            Some(vec![name("a"), name("a")])
        );
    }
}
