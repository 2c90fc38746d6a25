//! Any bytes as an LTX file: no panic, and what is accepted encodes and decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use litefs_ltx::{Crc64, Decoder, Encoder, Header, Pgno, Result, Trailer, verify};

type File = (Header, Vec<(Pgno, Vec<u8>)>, Trailer);

fuzz_target!(|data: &[u8]| {
    check(data);
    if let Some(split) = data.len().checked_sub(8) {
        let body = &data[..split];
        let sum = Crc64::of(body).get().to_be_bytes();
        check(&[body, &sum].concat());
    }
});

fn check(bytes: &[u8]) {
    let verdict = verify(bytes);
    let Ok(file) = decode(bytes) else {
        assert!(verdict.is_err());
        return;
    };
    let summary = verdict.expect("decoded");
    assert_eq!((summary.header, summary.trailer), (file.0, file.2));
    let again = encode(&file);
    let decoded = decode(&again).expect("encoded");
    assert_eq!((decoded.0, &decoded.1), (file.0, &file.1));
    assert_eq!(decoded.2.post_apply, file.2.post_apply);
    // Reserved bytes of the header are not kept, and LZ4 has many forms.
    if !file.0.compressed && bytes[80..100] == [0; 20] {
        assert_eq!(again, bytes);
    }
}

fn decode(bytes: &[u8]) -> Result<File> {
    let mut decoder = Decoder::new(bytes)?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size.len()];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno, page.clone()));
    }
    Ok((header, pages, decoder.finish()?))
}

fn encode((header, pages, trailer): &File) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), *header).expect("decoded header");
    for (pgno, page) in pages {
        encoder.encode_page(*pgno, page).expect("decoded page");
    }
    encoder.finish(trailer.post_apply).expect("decoded trailer").0
}
