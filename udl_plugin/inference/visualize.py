"""Maps and results as pictures, in OpenCV's habit: uint8 `(H, W, 3)`, BGR."""
import cv2
import numpy as np

RGB_TO_Y = np.array([65.738, 129.057, 25.064], dtype=np.float64) / 256  # the protocol's luma, offset left out


def uncertainty_picture(log_var, limits=None):
    """The authors' picture of a map: Y of it, stretched to its minimum and maximum, in OpenCV's JET.

    Args:
        log_var (ndarray): `(C, H, W)`, float, C of 3 (RGB) or 1.
        limits (tuple[float]): What is shown in full blue and in full red, instead of minimum and maximum, so that
            pictures can be compared; `color_bar` draws the scale.

    Returns:
        ndarray: uint8 `(H, W, 3)`, BGR: blue where the network is sure, red where it is not. A constant map is blue.

    Raises:
        ValueError: another number of channels, or limits that are not in order.
    """
    y = luma(log_var)
    low, high = (y.min(), y.max()) if limits is None else limits
    if limits is not None and not low < high:
        raise ValueError(f'Limits are a lower and a higher number, not {limits}.')
    return _jet(np.clip((y - low) / max(high - low, 1e-12), 0, 1))


def luma(log_var):
    """Y of a map `(C, H, W)`, in its unit: the weights of the channels add up to 1."""
    if log_var.ndim != 3 or log_var.shape[0] not in (1, 3):
        raise ValueError(f'A map of 1 or 3 channels is needed, (C, H, W), not {log_var.shape}.')
    return log_var[0] if log_var.shape[0] == 1 else np.tensordot(RGB_TO_Y / RGB_TO_Y.sum(), log_var, 1)


def color_bar(height, limits, width=70):
    """The scale of `uncertainty_picture` with `limits`, to be put beside it: uint8 `(height, width, 3)`, BGR."""
    bar = np.full((height, width, 3), 255, np.uint8)
    bar[:, :16] = _jet(np.linspace(1, 0, height)[:, None])
    for number in range(5):
        value = limits[1] + (limits[0] - limits[1]) * number / 4
        row = round(number / 4 * (height - 1))
        bar[row, :20] = 0
        place = 22, min(max(row + 4, 9), height - 2)
        cv2.putText(bar, f'{value:.1f}', place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def error_picture(sr, gt, full_scale=32):
    """Absolute error, mean over the channels, in JET.

    Args:
        sr, gt (ndarray): uint8 `(H, W, 3)`.
        full_scale (float): The error, in 8-bit levels, that is shown in full red.

    Returns:
        ndarray: uint8 `(H, W, 3)`, BGR.
    """
    error = np.abs(sr.astype(np.float64) - gt.astype(np.float64)).mean(axis=2)
    return _jet(np.clip(error / full_scale, 0, 1))


def _jet(unit):
    return cv2.applyColorMap((unit * 255).round().astype(np.uint8), cv2.COLORMAP_JET)


def contact_sheet(rows, margin=8, label_height=30):
    """One picture of labelled tiles.

    Args:
        rows (list[list[tuple[str, ndarray]]]): Label and tile, uint8 `(H, W, 3)`; tiles of a row have one height.

    Returns:
        ndarray: uint8 `(H, W, 3)`, on white.
    """
    strips = []
    for row in rows:
        tiles = [np.pad(_label(tile, text, label_height), ((0, margin), (0, margin), (0, 0)), constant_values=255)
                 for text, tile in row]
        strips.append(np.concatenate(tiles, axis=1))
    width = max(strip.shape[1] for strip in strips)
    strips = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
    return np.pad(np.concatenate(strips), ((margin, 0), (margin, 0), (0, 0)), constant_values=255)


def _label(tile, text, height):
    """`tile` under a strip that says `text`, in letters as large as fit."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    width = cv2.getTextSize(text, font, 1, thickness)[0][0]
    size = min(0.6, 0.98 * tile.shape[1] / max(width, 1))
    strip = np.full((height, tile.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (0, height - 10), font, size, (0, 0, 0), thickness, cv2.LINE_AA)
    return np.concatenate([strip, tile])


def encode_png(picture):
    """The bytes of a PNG file of `picture`, uint8 `(H, W, 3)` BGR or `(H, W)`."""
    done, data = cv2.imencode('.png', picture)
    if not done:
        raise ValueError(f'OpenCV cannot encode a picture of {picture.shape}, {picture.dtype}.')
    return data.tobytes()
