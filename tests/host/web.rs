//! A small web server on loopback, for downloads: it knows ranges and ETags, and can be told to break off.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What is at a path.
#[derive(Clone, Default)]
pub(crate) struct Page {
    pub(crate) body: Vec<u8>,
    pub(crate) etag: Option<&'static str>,
    /// Answered instead of the body.
    pub(crate) status: Option<u16>,
    /// Where else it is.
    pub(crate) location: Option<String>,
    /// What it takes to get it: the value of `Authorization`.
    pub(crate) login: Option<&'static str>,
    /// What is answered to who has not that: the value of `WWW-Authenticate`; that there is nothing, if `None`.
    pub(crate) challenge: Option<String>,
    /// The length that is told instead of that of the body.
    pub(crate) length: Option<u64>,
    /// A part is given of whatever is there, whatever `If-Range` says.
    pub(crate) any_range: bool,
    /// The connection ends after that many bytes of the body, that many times.
    pub(crate) cut: (usize, usize),
}

impl Page {
    pub(crate) fn new(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::default()
        }
    }
}

type Pages = Arc<Mutex<(BTreeMap<String, Page>, Vec<String>)>>;

/// The server, until the program ends.
pub(crate) struct Web {
    address: String,
    pages: Pages,
}

impl Web {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let pages = Pages::default();
        let served = Arc::clone(&pages);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                // Whoever asks may go away at any time.
                thread::spawn(move || answer(stream, &served));
            }
        });
        Self { address, pages }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub(crate) fn put(&self, path: &str, page: Page) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.0.insert(path.to_owned(), page);
    }

    /// What was asked for since the last time: "/a.tar", "/a.tar bytes=10-", "/a.tar \"etag\"".
    pub(crate) fn asked(&self) -> Vec<String> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pages.1)
    }
}

/// The path of a request, and its headers by their names in lower case.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, BTreeMap<String, String>)> {
    let mut lines = reader.lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some((path, headers))
}

fn answer(mut stream: TcpStream, pages: &Pages) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut path, mut headers) = request(&mut reader)?;
    // A proxy is asked for a way to another host, which it is here itself.
    if !path.starts_with('/') {
        stream.write_all(b"HTTP/1.1 200 x\r\n\r\n").ok()?;
        (path, headers) = request(&mut reader)?;
    }
    let (range, tag) = (headers.get("range"), headers.get("if-none-match"));
    let asked = [Some(&path), range, tag].into_iter().flatten().cloned();
    let asked = asked.collect::<Vec<_>>().join(" ");
    let page = {
        let mut pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.1.push(asked);
        let page = pages.0.get_mut(&path);
        page.map(|page| {
            let now = page.clone();
            page.cut.1 = page.cut.1.saturating_sub(1);
            now
        })
    };
    let is_known = |page: &Page| {
        page.login
            .is_none_or(|login| headers.get("authorization").is_some_and(|is| is == login))
    };
    if let Some(challenge) = page
        .as_ref()
        .filter(|page| !is_known(page))
        .and_then(|page| page.challenge.as_ref())
    {
        let head = format!(
            "HTTP/1.1 401 x\r\nContent-Length: 0\r\nConnection: close\r\nWWW-Authenticate: {challenge}\r\n\r\n"
        );
        return stream.write_all(head.as_bytes()).ok();
    }
    let page = page.filter(is_known);
    let Some(page) = page else {
        return write!(
            stream,
            "HTTP/1.1 404 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .ok();
    };
    let mut head = Vec::new();
    if let Some(etag) = page.etag {
        head.push(format!("ETag: {etag}\r\n"));
    }
    if let Some(location) = &page.location {
        head.push(format!("Location: {location}\r\n"));
    }
    let mut body = &page.body[..];
    let mut status = page.status.unwrap_or(if page.location.is_some() { 302 } else { 200 });
    if status != 200 || tag.is_some_and(|tag| page.etag == Some(tag)) {
        status = if status == 200 { 304 } else { status };
        body = &[];
    } else if let (Some(range), Some(etag)) = (range, page.etag)
        && (page.any_range || headers.get("if-range").is_some_and(|tag| tag == etag))
    {
        let first: usize = range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?;
        (status, body) = (206, body.get(first..)?);
        head.push(format!(
            "Content-Range: bytes {first}-{}/{}\r\n",
            page.body.len() - 1,
            page.body.len()
        ));
    }
    write!(
        stream,
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        page.length.unwrap_or(body.len() as u64),
        head.concat()
    )
    .ok()?;
    let (bytes, times) = page.cut;
    let sent = if times > 0 { bytes.min(body.len()) } else { body.len() };
    stream.write_all(&body[..sent]).ok()
}
