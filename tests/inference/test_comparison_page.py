"""The comparison page: its content, and what it does in Chromium (skipped without playwright or chromium)."""
import base64
import contextlib
import html.parser
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.errors import UserError
from udl_plugin.inference import comparison_page
from udl_plugin.inference.comparison_page import (
    TEMPLATE,
    PageImage,
    build_page,
    build_upscale_page,
    encode_error,
    encode_lossless,
)
from udl_plugin.inference.html_table import HtmlTable
from udl_plugin.inference.provenance import list_provenance
from udl_plugin.inference.upscaler import Upscaler
from udl_plugin.inference.visualize import OWNERS, absolute_error, heat_map
from udl_plugin.utils.imresize import imresize

HEIGHT, WIDTH = 40, 60
LABEL = 'A </script><b>&"'  # as a user may call a network
TABLE = HtmlTable('Set5', [['network', 'PSNR', 'ms'], ['bicubic', '28.4', '1'], ['A', '31.9', '1,200'],
                           ['B', '32.1', '-']], {1: 'higher', 2: 'lower'})


@pytest.fixture(scope='module')
def images():
    generator = np.random.default_rng(0)
    truth, bicubic, a, b = generator.integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)
    error = generator.gamma(2, 5, (2, HEIGHT, WIDTH))
    error[0, 0, 0] = 1e9
    return [PageImage('bicubic', bicubic, truth=truth), PageImage(LABEL, a, error[0], truth=truth),
            PageImage('B', b, error[1], OWNERS['step 2'], truth)]


@pytest.fixture(scope='module')
def page_text(images):
    return build_page('A <title> & more', images, [('command', 'udl-compare <x>')], [TABLE, TABLE._replace(
        caption='image by image', is_folded=True)], ['A <note>.'])


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'link'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ['script'] else self.text).append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert not reader.open, 'tags are closed'
    return reader, json.loads(next(one for one in reader.scripts if one.startswith('{')))


def decode(url):
    kind, _, data = url.partition(',')
    assert kind in ('data:image/png;base64', 'data:image/webp;base64')
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# ---- content

def test_page_loads_nothing(page_text):
    reader, data = read(page_text)
    assert not re.search(r'https?:|url\(|@import|fetch\(|XMLHttp|importScripts', page_text)
    addresses = [one[name] for _, one in reader.tags for name in ('src', 'href') if name in one]
    assert addresses == ['data:,']
    urls = [part for layer in data['layers'] for part in layer.get('parts', ())]
    assert all(url.startswith('data:image/') for url in urls)
    policy = next(one['content'] for tag, one in reader.tags if tag == 'meta' and 'http-equiv' in one)
    assert "default-src 'none'" in policy


def test_layers_and_their_labels(page_text):
    reader, data = read(page_text)
    assert [layer['label'] for layer in data['layers']] == [
        'bicubic', LABEL, 'B', 'ground truth', f'expected error of {LABEL}', f'true error of {LABEL}',
        'expected error of B', 'true error of B', 'true error of bicubic']
    text = ''.join(reader.text)
    for part in ('A <title> & more', 'A <note>.', 'udl-compare <x>', f'The expected error of {LABEL} is that of the SR '
                 "image. The expected error of B is that of step 1's SR image."):
        assert part in text
    assert not any(tag == 'b' for tag, _ in reader.tags)


def test_images_are_lossless(images, page_text):
    _, data = read(page_text)
    for layer, expected in zip(data['layers'], [*(one.image for one in images), images[0].truth]):
        np.testing.assert_array_equal(decode(layer['parts'][0]), expected)


@pytest.mark.parametrize('has_webp', [True, False])
@pytest.mark.parametrize('image', [
    np.zeros((1, 1), np.uint8), np.arange(256, dtype=np.uint8).reshape(8, 32),
    np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8),
    np.repeat(np.arange(30000, dtype=np.uint8).reshape(100, 100, 3), 3, axis=0)])
def test_formats_are_lossless(image, has_webp, monkeypatch):
    if not has_webp:  # Pillow may be without it, and images may be too large for it
        monkeypatch.setattr(comparison_page, 'WEBP_MAX', 0)
    url = encode_lossless(image)
    pixels = decode(url)
    np.testing.assert_array_equal(pixels if pixels.ndim == image.ndim else pixels[:, :, 0], image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'png')
    png = f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'
    assert len(url) <= len(png) if has_webp else url == png


def test_errors_are_within_half_a_step(images, page_text):
    _, data = read(page_text)
    assert data['step'] == data['limit'] / 1000
    assert f'The expected error is in steps of {data["step"]:.3g} levels.' in page_text
    codes = decode(data['layers'][4]['parts'][0]).astype(int)
    levels = data['step'] * (256 * codes[:, :, 0] + codes[:, :, 1])
    error = images[1].expected_error
    assert levels[0, 0] == pytest.approx(65535 * data['step']), 'the largest that can be stored'
    levels[0, 0] = error[0, 0]
    np.testing.assert_allclose(levels, error, atol=data['step'] * 0.501)
    bad = encode_error(np.array([[np.nan, np.inf, 0]]), 10)
    assert bad.tolist() == [[[255, 255, 0], [255, 255, 0], [0, 0, 0]]]


def test_grey_networks_have_a_grey_truth(images):
    grey = images[0].truth[:, :, 0]
    _, data = read(build_page('x', [images[0], PageImage('Y', grey + 1, truth=grey)], []))
    assert [layer['label'] for layer in data['layers'] if layer['kind'] == 'image'] == [
        'bicubic', 'Y', 'ground truth', 'ground truth, grey']
    assert next(layer['truth'] for layer in data['layers'] if layer['label'] == 'true error of Y') == 3


def test_images_of_several_sizes(images):
    with pytest.raises(ValueError, match='one size'):
        build_page('x', [images[0], PageImage('y', images[1].image[1:])], [])


def test_page_that_would_be_too_large_has_crops(images, monkeypatch):
    full = build_page('x', images, [])
    monkeypatch.setattr(comparison_page, 'MIN_CROP', 8)
    monkeypatch.setattr(comparison_page, 'MAX_BYTES', len(full) - 5000)
    page = build_page('x', images, [])
    assert len(page) <= comparison_page.MAX_BYTES
    _, data = read(page)
    ((x, y, width, height),) = data['regions']
    assert (x, y) == ((WIDTH - width) // 2, (HEIGHT - height) // 2)
    assert width > WIDTH / 2
    assert f'are too large for one page; it has these parts of them: {width} x {height} at {x},{y}.' in page
    np.testing.assert_array_equal(decode(data['layers'][2]['parts'][0]), images[2].image[y:y + height, x:x + width])
    boxes = [(0, 1, 8, 9), (20, 10, 12, 7)]
    _, data = read(build_page('x', images, [], boxes=boxes))
    assert data['regions'] == [list(box) for box in boxes]
    np.testing.assert_array_equal(decode(data['layers'][1]['parts'][1]), images[1].image[10:17, 20:32])
    with pytest.raises(UserError, match=r'would have \d+ MB, more than 0; choose smaller boxes'):
        build_page('x', images, [], boxes=[(0, 0, WIDTH, HEIGHT)])
    monkeypatch.setattr(comparison_page, 'MAX_BYTES', 20_000)
    with pytest.raises(UserError, match='choose smaller boxes, or fewer images'):
        build_page('x', images, [])


def test_upscaled_image(tmp_path, seed):
    network_g = {'type': 'EDSRTwo', **TINY}
    upscaler = Upscaler(NetworkFile(build_network(network_g).state_dict(), network_g, uncertainty_loss='ESU'),
                        uncertainty=True)
    source = tmp_path / 'photo.png'
    photo = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    Image.fromarray(photo, 'RGBA').save(source)
    result = upscaler.upscale(source)
    page = build_upscale_page(source, result, upscaler, source)
    reader, data = read(page)
    assert [layer['label'] for layer in data['layers']] == [
        'bicubic', 'EDSRTwo x2, step 2', 'expected error of EDSRTwo x2, step 2']
    np.testing.assert_array_equal(decode(data['layers'][0]['parts'][0]), imresize(photo[:, :, :3], 2))
    np.testing.assert_array_equal(decode(data['layers'][1]['parts'][0]), result.image[:, :, :3])
    text = ''.join(reader.text)
    assert "that of step 1's SR image" in text
    assert 'Alpha is not shown.' in text
    assert 'SHA-256' in text


def test_provenance(tmp_path):
    (tmp_path / 'x').write_bytes(b'abc')
    rows = dict(list_provenance([tmp_path]))  # a folder
    assert rows[str(tmp_path / 'x')] == 'SHA-256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    for name in ('Python', 'torch', 'udl_plugin', 'basicsr'):
        assert re.search(rf'{name} \d', rows['versions'])
    assert {'command', 'date', 'machine'} < set(rows)


def test_contrast_of_text():
    """WCAG 2, AA: 4.5 to 1 for text, in both themes."""
    def luminance(color):
        unit = np.array([int(color[n:n + 2], 16) for n in (1, 3, 5)]) / 255
        return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055)**2.4) @ [0.2126, 0.7152, 0.0722]

    themes = [dict(re.findall(r'--(\w+): (#\w{6})', block))
              for block in re.findall(r':root \{(.*?)\}', TEMPLATE.read_text(), re.DOTALL)]
    assert len(themes) == 2
    for theme in themes:
        for front in ('text', 'faint', 'accent'):
            for back in ('back', 'panel'):
                dark, light = sorted(luminance(theme[name]) for name in (front, back))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back, theme)


# ---- in a browser

@pytest.fixture(scope='module')
def chromium():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = shutil.which('chromium') or shutil.which('google-chrome')
    if path is None:
        pytest.skip('there is no chromium')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, page_text, tmp_path):
    """Opens the page in a new window; fails if there is a message in the console."""
    (tmp_path / 'page.html').write_text(page_text)
    messages = []
    with contextlib.ExitStack() as stack:
        def visit(address='', **options):
            options = {'viewport': {'width': 600, 'height': 500}, **options}
            context = stack.enter_context(chromium.new_context(**options))
            page = context.new_page()
            page.set_default_timeout(5000)
            page.on('console', lambda message: messages.append(message.text))
            page.on('pageerror', lambda error: messages.append(str(error)))
            page.on('request', lambda request: messages.append(request.url) if not request.url.startswith(
                ('file:', 'data:')) else None)
            page.goto(f'{(tmp_path / "page.html").as_uri()}{address}')
            wait(page, "performance.getEntriesByName('first view').length")
            return page
        yield visit
    assert not messages


def wait(page, expression, seconds=5):
    """As `page.wait_for_function`, which the page's security policy does not let evaluate a text."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def settle(page):
    page.evaluate('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')


def get_pixel(page, x, y):
    """RGB of the canvas at CSS pixels of the stage."""
    settle(page)
    return page.evaluate('''([x, y]) => {
        const pen = makeCanvas(1, 1).getContext('2d', {willReadFrequently: true}), ratio = devicePixelRatio;
        pen.drawImage(canvas, -Math.floor(x * ratio), -Math.floor(y * ratio));
        return [...pen.getImageData(0, 0, 1, 1).data];
    }''', [x, y])[:3]


def get_view(page):
    return page.evaluate('({...view, ...getView()})')


def get_stage(page):
    box = page.locator('#stage').bounding_box()
    return box['x'], box['y'], box['width'], box['height']


def test_both_sides_show_the_pixels(visit, images):
    page = visit('#x=30.5,y=20.5,zoom=16,left=1,right=3,divider=0.5')
    _, _, width, height = get_stage(page)
    for column in (-5, -2, 2, 5):
        image = images[0 if column < 0 else 2].image
        for offset in (-6, 6):  # the whole pixel has its color
            assert get_pixel(page, width / 2 + 16 * column + offset, height / 2) == image[20, 30 + column].tolist()


def test_errors_have_the_colors_of_one_scale(visit, images, page_text):
    limit = read(page_text)[1]['limit']
    page = visit('#x=30.5,y=20.5,zoom=16,left=5,right=8')
    wait(page, 'layers[4].loaded && layers[7].loaded')
    _, _, width, height = get_stage(page)
    true = absolute_error(images[2].image, images[2].truth)
    for column, error in ((-3, images[1].expected_error), (3, true)):
        found = get_pixel(page, width / 2 + 16 * column, height / 2)
        near = [heat_map(error[20:21, 30 + column:31 + column] + shift * limit / 1000, (0, limit))[0, 0, ::-1].tolist()
                for shift in (-1, 0, 1)]
        assert found in near
    assert page.inner_text('#scale').startswith('0')
    assert f'{limit:.3g} or more' in page.inner_text('#scale')


def test_values_under_the_cursor(visit, images):
    page = visit('#x=30,y=20,zoom=10,left=2,right=5')
    left, top, width, height = get_stage(page)
    page.mouse.move(left + width / 2 + 10 * 3.5, top + height / 2 - 10 * 2.5)
    wait(page, 'describePixel().includes("observed") && !describePixel().includes("...")')
    x, y = 33, 17
    expected = images[1].expected_error[y, x]
    observed = absolute_error(images[1].image, images[1].truth)[y, x]
    text = page.evaluate('describePixel()')
    found = re.fullmatch(rf'x {x}, y {y}: {re.escape(LABEL)} expected ([\d.]+), observed ([\d.]+) levels; '
                         r'left RGB (\d+) (\d+) (\d+)', text)
    assert found, text
    assert float(found[1]) == pytest.approx(expected, abs=0.11)
    assert float(found[2]) == pytest.approx(observed, abs=0.051)
    assert [int(value) for value in found.groups()[2:]] == images[1].image[y, x].tolist()
    settle(page)
    assert page.inner_text('#status') == text


def test_drag_the_divider(visit, images):
    page = visit('#x=30.5,y=20.5,zoom=16')
    left, top, width, height = get_stage(page)
    assert get_pixel(page, width / 2 + 80, height / 2) == images[1].image[20, 35].tolist()
    page.mouse.move(left + width / 2, top + 100)
    page.mouse.down()
    page.mouse.move(left + width * 0.75, top + 120, steps=3)
    page.mouse.up()
    assert get_pixel(page, width / 2 + 80, height / 2) == images[0].image[20, 35].tolist()
    assert page.get_attribute('#divider', 'aria-valuenow') == '75'
    assert get_view(page)['x'] == 30.5, 'the image stays'


def test_wheel_zooms_at_the_cursor_and_drag_pans(visit):
    page = visit('#x=30,y=20,zoom=8')
    left, top, width, height = get_stage(page)
    page.mouse.move(left + width / 2 + 84, top + height / 2 + 44)  # over 40, 25
    page.mouse.wheel(0, -200)
    wait(page, 'getView().zoom > 8')
    settle(page)
    view = get_view(page)
    assert view['zoom'] == pytest.approx(8 * np.exp(0.4))
    assert view['x'] + 84 / view['zoom'] == pytest.approx(40.5, abs=0.1)  # the browser rounds to whole CSS pixels
    assert view['y'] + 44 / view['zoom'] == pytest.approx(25.5, abs=0.1)
    assert page.inner_text('#status').startswith('x 40, y 25:')
    page.mouse.down()
    page.mouse.move(left + width / 2 + 84 - 50, top + height / 2 + 44, steps=2)
    page.mouse.up()
    settle(page)
    assert get_view(page)['x'] == pytest.approx(view['x'] + 50 / view['zoom'])
    page.mouse.dblclick(left + 10, top + 100)
    settle(page)
    assert get_view(page)['x'] == WIDTH / 2, 'fits'
    assert get_view(page)['zoom'] == int(min(width / WIDTH, height / HEIGHT))


def test_fingers(visit):
    page = visit('#x=30,y=20,zoom=8', viewport={'width': 390, 'height': 800}, has_touch=True, is_mobile=True,
                 device_scale_factor=2)
    left, top, width, _ = get_stage(page)
    touch = page.context.new_cdp_session(page)

    def send(kind, *points):
        touch.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': [
            {'x': left + x, 'y': top + y, 'id': number} for number, (x, y) in enumerate(points)]})

    send('touchStart', (100, 200))
    for x in (110, 125, 140):
        send('touchMove', (x, 200))
    send('touchEnd')
    settle(page)
    assert get_view(page)['x'] == pytest.approx(30 - 40 / 8), 'one finger pans'
    assert get_view(page)['divider'] == 0.5

    assert page.locator('#divider').bounding_box()['width'] >= 44, 'its target is wider than what is drawn'
    send('touchStart', (width / 2 + 20, 200))
    for x in (150, 120, 78):
        send('touchMove', (x, 200))
    send('touchEnd')
    settle(page)
    assert get_view(page)['divider'] == pytest.approx(78 / width), 'or moves the divider'
    assert get_view(page)['x'] == pytest.approx(25)

    before = get_view(page)
    send('touchStart', (250, 200))
    send('touchStart', (250, 200), (290, 200))
    for reach in (10, 20):
        send('touchMove', (250 - reach, 200), (290 + reach, 200))
    send('touchEnd')
    settle(page)
    view = get_view(page)
    assert view['zoom'] == pytest.approx(16), 'two fingers pinch'
    assert view['x'] + (270 - width / 2) / 16 == pytest.approx(before['x'] + (270 - width / 2) / 8)


def test_keys_without_a_mouse(visit):
    page = visit()
    for _ in range(10):
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement === stage'):
            break
    assert page.evaluate("document.activeElement === stage && stage.matches(':focus-visible')")
    assert page.evaluate("parseFloat(getComputedStyle(stage).outlineWidth)") >= 2
    assert page.evaluate('stage.ariaLabel')
    page.keyboard.press('3')
    page.keyboard.press('Shift+Digit4')
    page.keyboard.press('9')
    page.keyboard.press('8')
    assert (get_view(page)['left'], get_view(page)['right']) == (7, 3)
    settle(page)
    assert (page.input_value('#left'), page.input_value('#right')) == ('7', '3')
    zoom = get_view(page)['zoom']
    page.keyboard.press('+')
    page.keyboard.press('+')
    assert get_view(page)['zoom'] == pytest.approx(2 * zoom)
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowDown')
    assert get_view(page)['x'] == pytest.approx(WIDTH / 2 + 60 / (2 * zoom))
    assert get_view(page)['y'] == pytest.approx(HEIGHT / 2 + 60 / (2 * zoom))
    page.keyboard.press('-')
    assert get_view(page)['zoom'] == pytest.approx(2**0.5 * zoom)
    page.keyboard.press('0')
    assert get_view(page)['zoom'] == zoom
    page.keyboard.press('Tab')
    assert page.evaluate("document.activeElement === divider && divider.getAttribute('role') === 'slider'")
    page.keyboard.press('ArrowLeft')
    assert get_view(page)['divider'] == pytest.approx(0.48)
    page.keyboard.press('End')
    settle(page)
    assert page.get_attribute('#divider', 'aria-valuenow') == '100'
    assert page.get_attribute('#divider', 'aria-valuetext').endswith('ground truth at the right')


def test_grid_has_one_pan_and_zoom(visit, images):
    page = visit('#x=30.5,y=20.5,zoom=10')
    page.keyboard.press('g')
    wait(page, 'layers.every(layer => layer.loaded)')
    settle(page)
    assert page.get_attribute('#grid', 'aria-pressed') == 'true'
    assert not page.is_visible('#divider')
    labels = page.locator('.chip').all_inner_texts()
    assert labels == [layer['label'] for layer in page.evaluate('data.layers')]
    left, top, *_ = get_stage(page)
    for number, image in enumerate([*(one.image for one in images), images[0].truth]):
        frame = page.evaluate(f'frames[{number}]')
        center = frame['x'] + frame['width'] / 2, frame['y'] + frame['height'] / 2
        assert get_pixel(page, center[0] + 30, center[1]) == image[20, 33].tolist()
    frame = page.evaluate('frames[4]')
    page.mouse.move(left + frame['x'] + frame['width'] / 2 + 9, top + frame['y'] + frame['height'] / 2 + 9)
    page.mouse.wheel(0, -100)
    wait(page, 'getView().zoom > 10')
    settle(page)
    assert page.inner_text('#status').startswith('x 31, y 21:')
    page.keyboard.press('g')
    settle(page)
    assert page.is_visible('#divider')


def test_address_opens_the_same_view(visit):
    page = visit()
    page.keyboard.press('5')
    left, top, width, _ = get_stage(page)
    page.mouse.move(left + 150, top + 120)
    page.mouse.wheel(0, -180)
    page.mouse.move(left + width / 2, top + 50)
    page.mouse.down()
    page.mouse.move(left + width * 0.3, top + 50)
    page.mouse.up()
    page.mouse.move(1, 1)
    wait(page, "location.hash.includes('divider=0.3')")
    settle(page)
    address = page.evaluate('location.hash')
    assert re.fullmatch(r'#x=[\d.]+,y=[\d.]+,zoom=[\d.]+,left=5,right=2,divider=[\d.]+,mode=wipe', address)
    assert page.evaluate('history.length') <= 2, 'the history is not filled'
    other = visit(address)
    settle(other)
    assert other.inner_text('#status') == page.inner_text('#status')
    assert other.evaluate('canvas.toDataURL()') == page.evaluate('canvas.toDataURL()')
    other.evaluate("location.hash = '#zoom=fit,left=3,mode=grid'")  # pasted into an open page
    wait(other, "view.mode === 'grid'")
    assert (get_view(other)['left'], get_view(other)['x']) == (2, WIDTH / 2)
    other.evaluate("location.hash = '#x=abc,zoom=-3,left=99,right=0.2,divider=7,mode=nonsense,%%'")
    wait(other, "view.mode === 'wipe'")
    view = get_view(other)
    assert view == {'x': 30, 'y': 20, 'zoom': view['zoom'], 'left': 8, 'right': 0, 'divider': 1, 'mode': 'wipe'}


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_narrow_windows_and_themes(visit, scheme):
    page = visit(viewport={'width': 390, 'height': 800}, color_scheme=scheme, has_touch=True, is_mobile=True)
    for key in ('', 'g'):
        if key:
            page.keyboard.press(key)
            settle(page)
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
    background = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (background == 'rgb(255, 255, 255)') == (scheme == 'light')


def test_tables_are_sorted_by_their_headers(visit):
    page = visit()
    table = page.locator('table').first

    def names():
        return table.locator('tbody th').all_inner_texts()

    table.get_by_role('button', name='ms').click()
    assert names() == ['bicubic', 'A', 'B'], 'lower is better; no number comes last'
    table.get_by_role('button', name='ms').click()
    assert names() == ['A', 'bicubic', 'B']
    table.get_by_role('button', name='PSNR').focus()
    page.keyboard.press('Enter')
    assert names() == ['B', 'A', 'bicubic']
    assert table.locator('th').nth(1).get_attribute('aria-sort') == 'descending'
    assert table.locator('th').nth(2).get_attribute('aria-sort') is None
    table.get_by_role('button', name='network').click()
    assert names() == ['A', 'B', 'bicubic']
    assert not page.locator('details table').is_visible()
    page.get_by_text('image by image').click()
    assert page.locator('details table').is_visible()
